//! Builds of a plugin that differ in a constant, without a compiler.
//!
//! Owns the patching of a built component. Floor: none (pure).

/// Build `number` (below 100) of a component: two bytes of a text in its data are replaced by the
/// number, which changes nothing in its layout.
///
/// # Panics
/// If the text is not there exactly once or ends in less than two bytes.
pub fn variant(component: &[u8], text: &str, number: usize) -> Vec<u8> {
    assert!(number < 100 && text.len() >= 2, "two digits have room");
    let found: Vec<_> = memchr::memmem::find_iter(component, text).collect();
    assert_eq!(found.len(), 1, "{text:?} is there once");
    let mut component = component.to_vec();
    let end = found[0] + text.len();
    component[end - 2..end].copy_from_slice(format!("{number:02}").as_bytes());
    component
}
