"""The files that `sightrail init` writes; each also runs from here."""
