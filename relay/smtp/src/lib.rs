//! SMTP protocol core.
