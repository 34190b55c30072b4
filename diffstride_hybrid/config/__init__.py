"""The only room that knows gin: names, files, and the configs of saved runs."""
