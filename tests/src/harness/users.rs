//! Lines for the file of users, as the program makes them.
//!
//! Owns no hash of its own. Floor: none.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::binary;

/// What `wavegate users hash` prints for this user.
pub fn user_line(name: &str, password: &str) -> String {
    let mut child = Command::new(binary())
        .args(["users", "hash", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}
