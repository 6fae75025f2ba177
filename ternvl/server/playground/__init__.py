"""The playground, a web page to try the model on. `scripts/playground` builds its files from `web/`."""
