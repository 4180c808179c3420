//! Upstreams: targets, health, pooled connections. Floor 2.
