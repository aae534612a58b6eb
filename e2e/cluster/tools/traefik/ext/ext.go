// Package ext stands in for traefik's extension point, which its published module leaves out: no extension, no fields.
package ext

// HTTP adds nothing to traefik's HTTP configuration.
type HTTP struct{}

// Router adds nothing to a traefik router.
type Router struct{}
