//! A spool with many messages, made without sending them.
//!
//! Owns their copying: the relay itself has taken one of each instance, and its envelope, progress
//! and bytes are written again under other ids, through the store that the relay uses. So what is
//! there is what the relay would have written. Floor: none.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use memchr::memmem;
use wavegate_spool::{Handle, MessageKey, NewBody, Op, Opened, Options, RealDisk, Store};

/// Operations in one batch, as the relay has it.
const BATCH: usize = 4096;
/// The relay's key of the value that says that everything is held.
const ALL_HELD: &[u8] = b"all-held";
/// Digits of an id that are random; those before are the time of receipt.
const RANDOM: usize = 7;
/// Digits of ids: Crockford's base 32.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A message to copy.
struct Template {
    key: MessageKey,
    handle: Handle,
    state: Vec<u8>,
}

impl Template {
    fn copy(&self, number: u64, envelope: &[u8], body: &[u8]) -> anyhow::Result<Op> {
        let mut key = self.key;
        let mut left = number;
        for place in key.iter_mut().rev().take(RANDOM) {
            *place = DIGITS[usize::try_from(left % 32)?];
            left /= 32;
        }
        let body: Arc<Vec<u8>> = Arc::new(renamed(body, &self.key, &key));
        Ok(Op::Accept {
            key,
            envelope: renamed(envelope, &self.key, &key),
            state: self.state.clone(),
            body: NewBody::Parts(vec![body]),
        })
    }
}

/// What to copy: envelope, bytes, how many are wanted and how many there are.
type Part<'a> = (&'a Template, Vec<u8>, Vec<u8>, u64, u64);

/// Copies until there are `wanted` messages of each instance, and has everything held. In the order
/// in which mail of instances that send at the same time comes in.
pub(super) fn fill(folder: &Path, wanted: &[(&str, u64)]) -> anyhow::Result<()> {
    let mut found = Vec::new();
    let Opened { mut store, .. } = open(folder, |key, handle, state| {
        found.push(Template { key, handle, state: state.to_vec() });
    })?;
    let reader = store.reader();
    let mut templates: Vec<Part<'_>> = Vec::new();
    for (name, count) in wanted {
        let is_its = |one: &&Template| memmem::find(&one.state, name.as_bytes()).is_some();
        let template = found.iter().find(is_its);
        let template = template.with_context(|| format!("the spool has no message of {name}"))?;
        let envelope = reader.envelope(template.handle)?;
        let mut body = vec![0; usize::try_from(reader.body_len(template.handle)?)?];
        reader.read_body(template.handle, 0, &mut body)?;
        templates.push((template, envelope, body, *count - 1, 0_u64));
    }
    let all: u64 = templates.iter().map(|(_, _, _, count, _)| count).sum();
    let mut batch = Vec::with_capacity(BATCH);
    for number in 0..all {
        // Whoever is furthest behind its share of what there is so far.
        let behind = |(_, _, _, count, done): &&mut Part<'_>| {
            i128::from(number * *count) - i128::from(*done) * i128::from(all)
        };
        let Some(next) = templates.iter_mut().max_by_key(behind) else { break };
        let (template, envelope, body, _, done) = next;
        *done += 1;
        batch.push(template.copy(number, envelope, body)?);
        if batch.len() >= BATCH {
            commit(&mut store, std::mem::take(&mut batch))?;
        }
    }
    batch.push(Op::Value { key: ALL_HELD.to_vec(), value: Some(b"benchmark".to_vec()) });
    commit(&mut store, batch)?;
    Ok(store.close()?)
}

/// Nothing is held by the operator any more.
pub(super) fn let_go(folder: &Path) -> anyhow::Result<()> {
    let Opened { mut store, .. } = open(folder, |_, _, _| ())?;
    commit(&mut store, vec![Op::Value { key: ALL_HELD.to_vec(), value: None }])?;
    Ok(store.close()?)
}

/// Has the kernel forget what it has of the spool's files in memory, as after a start of the machine.
pub(super) fn cool(folder: &Path) -> anyhow::Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            cool(&path)?;
            continue;
        }
        let file = File::open(&path)?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}

fn open(
    folder: &Path,
    mut each: impl FnMut(MessageKey, Handle, &[u8]),
) -> anyhow::Result<Opened<RealDisk>> {
    let boot_id = boot_id()?;
    let options = Options { quota: u64::MAX, reserve: 0, boot_id, ..Options::default() };
    let opened = Store::open(RealDisk::new(folder), options, |one| {
        each(one.key, one.handle, one.state);
    })?;
    anyhow::ensure!(opened.damage.is_empty(), "the spool is damaged: {:?}", opened.damage);
    Ok(opened)
}

/// The kernel's name for this run of the machine: another one would look like a loss of power.
fn boot_id() -> anyhow::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let text = text.trim().replace('-', "");
    Ok(u128::from_str_radix(&text, 16)?.to_be_bytes())
}

fn commit(store: &mut Store<RealDisk>, batch: Vec<Op>) -> anyhow::Result<()> {
    for result in store.commit(batch) {
        result?;
    }
    Ok(())
}

/// `bytes` with one id in place of another.
fn renamed(bytes: &[u8], from: &MessageKey, to: &MessageKey) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = memmem::find_iter(&bytes, from).collect();
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    bytes
}
