"""`workbench lab`: JupyterLab on a working copy of the notebooks, with a tile for the dashboard."""
