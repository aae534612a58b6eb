"""Virtual time: the real decision and the real gateway machine over simulated pods, nodes and an API server, from a seed.

It must never import the control loop, a Kubernetes client, or anything that reads a clock.
"""
