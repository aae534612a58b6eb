// Package ecs stands in for traefik's provider for ECS, which needs the libraries of a cloud that no test uses.
package ecs

import (
	"errors"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/safe"
)

// ProviderName is the provider's name in a configuration.
const ProviderName = "ecs"

// Provider can be named, and refuses.
type Provider struct{}

// SetDefaults has nothing to set.
func (p *Provider) SetDefaults() {}

// Init refuses: there is nothing to ask.
func (p *Provider) Init() error {
	return errors.New("this traefik was built without its provider for ECS")
}

// Provide is never reached.
func (p *Provider) Provide(chan<- dynamic.Message, *safe.Pool) error {
	return p.Init()
}
