"use strict";
for (const figure of document.querySelectorAll("figure.maps")) {
  const frames = [...figure.querySelectorAll(".frame")];
  if (frames.length < 2) continue;
  const player = document.createElement("div");
  player.className = "player";
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Play" });
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: frames.length - 1, value: 0 });
  const output = document.createElement("output");
  slider.setAttribute("aria-label", "Rollout step");
  player.append(button, slider, output);
  figure.querySelector("h4").after(player);
  figure.classList.add("live");
  const show = (index) => {
    frames.forEach((frame, i) => frame.classList.toggle("on", i === index));
    const { label, note } = frames[index].dataset;
    slider.value = index;
    slider.setAttribute("aria-valuetext", label);
    const strong = Object.assign(document.createElement("strong"), { textContent: label });
    output.replaceChildren(strong, note ? ` · ${note}` : "");
  };
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "Pause";
    timer = setInterval(() => show((+slider.value + 1) % frames.length), 300);
  });
  slider.addEventListener("input", () => { if (timer) stop(); show(+slider.value); });
  show(0);
}
