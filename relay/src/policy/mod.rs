//! The policy host. Floor 2.
