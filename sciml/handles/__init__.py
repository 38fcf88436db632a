"""What a domain's users hold in their hands beside xarray: objects and files of their own field's tools."""
