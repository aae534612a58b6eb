"""Kubernetes: the ports that the control loop sees, and their implementation over the official client. Nothing else imports that client."""
