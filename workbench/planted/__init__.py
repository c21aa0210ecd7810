"""Records with planted truths, a file for each kind; reached as `workbench.testing`."""
