//! Messages: their id, envelope and body. Floor 0.
