"""The dashboard's pages, one file each: what they show of a run, under the scrubber's steps."""
