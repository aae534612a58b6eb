"""A real Kubernetes for end-to-end tests: a cluster that is named, `kind` where Docker runs, or two nodes made of processes on this machine.

It owns one state folder outside the repository, and what it starts; `down` takes all of it away again. It never touches another cluster, and
needs nothing but Python's standard library.
"""
