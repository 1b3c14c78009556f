"""HTTP: the server, who may ask what, the page, the event streams and the control of the daemon."""
