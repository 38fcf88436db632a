"""The head `refined`, asked at every resolution while it trains (deep supervision)."""

from __future__ import annotations

from sciml.operator.heads.refined import RefinedHead

PLUGIN = RefinedHead
