//! Any bytes as a path: no panic, and what is taken is safe to write and reads
//! back as itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_smtp::Address;
use wavegate_smtp::address::reverse_path;

fuzz_target!(|data: &[u8]| {
    let Ok((path, _)) = reverse_path(data) else { return };
    assert!(path.as_str().bytes().all(|byte| byte >= b' ' && byte != 0x7f));
    if !path.as_str().is_empty() {
        let again = Address::parse(path.as_str());
        assert_eq!(again.as_ref().map(Address::as_str), Ok(path.as_str()));
        let brackets = format!("<{}>", path.as_str());
        assert_eq!(reverse_path(brackets.as_bytes()), Ok((path, &b""[..])));
    }
});
