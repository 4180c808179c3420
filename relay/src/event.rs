//! What happened, as plain values. Floor 0.
