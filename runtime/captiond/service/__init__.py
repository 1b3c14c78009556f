"""What makes the daemon a service: one instance, readiness and watchdog for systemd, the unit file."""
