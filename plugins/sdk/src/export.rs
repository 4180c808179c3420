//! The glue between the contract and a [`Policy`]: what [`crate::export!`] expands to. Not for
//! policies to call.

use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::bindings::lifecycle::exports::wavegate::policy::lifecycle;
use crate::hooks::{Diagnostic, Needs, Policy, configured, freeze, routing, throttling};
use crate::types::Transaction;

/// Exports a policy: `export!(MyPolicy: freeze)`, or several hooks, `export!(MyPolicy: freeze,
/// routing, throttling)`. Once in a crate.
#[macro_export]
macro_rules! export {
    ($policy:ident: $($hook:ident),+ $(,)?) => {
        // A program that runs the policy's tests exports nothing.
        const _: () = {
            #[used]
            static VERSION: $crate::export::VersionMark =
                $crate::export::VersionMark::new(<$policy as $crate::Policy>::VERSION);
            static SLOT: ::std::sync::OnceLock<$policy> = ::std::sync::OnceLock::new();

            impl $crate::export::Exported for $policy {
                fn slot() -> &'static ::std::sync::OnceLock<Self> {
                    &SLOT
                }
                fn version() -> &'static $crate::export::VersionMark {
                    &VERSION
                }
            }

            #[cfg(target_arch = "wasm32")]
            mod exports {
                #![allow(unsafe_code, reason = "exporting a symbol is")]
                type Guest = $crate::export::Guest<super::$policy>;
                $crate::__export_lifecycle_impl!(Guest with_types_in $crate::bindings::lifecycle);
                $($crate::__export_hook!($hook Guest);)+
            }
        };
    };
}

/// The export of one hook.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    (freeze $guest:ident) => {
        $crate::__export_freeze_impl!($guest with_types_in $crate::bindings::freeze);
    };
    (routing $guest:ident) => {
        $crate::__export_routing_impl!($guest with_types_in $crate::bindings::routing);
    };
    (throttling $guest:ident) => {
        $crate::__export_throttling_impl!($guest with_types_in $crate::bindings::throttling);
    };
}

/// The version, findable in the built component: `wavegate-version`, then 24 bytes, padded with
/// NUL. A test makes another build of a component by writing other bytes there (`variant` in
/// `plugins/testing`); `describe` answers from them.
#[repr(C)]
pub struct VersionMark {
    mark: [u8; 16],
    version: [u8; VERSION_MAX],
}

/// Room for a version.
const VERSION_MAX: usize = 24;

impl VersionMark {
    /// The mark of a version; does not compile where that is too long.
    pub const fn new(version: &str) -> Self {
        let from = version.as_bytes();
        assert!(from.len() <= VERSION_MAX, "a version has at most 24 bytes");
        let mut room = [0; VERSION_MAX];
        let mut at = 0;
        while at < from.len() {
            room[at] = from[at];
            at += 1;
        }
        VersionMark { mark: *b"wavegate-version", version: room }
    }

    /// The version as it stands in memory now; the compiler must not know it better.
    fn read(&'static self) -> String {
        let this = std::hint::black_box(self);
        let end = this.version.iter().position(|byte| *byte == 0).unwrap_or(VERSION_MAX);
        debug_assert!(this.mark.starts_with(b"wavegate"));
        String::from_utf8_lossy(&this.version[..end]).into_owned()
    }
}

/// What `export!` gives a policy beside its own traits: the one instance, and the version.
pub trait Exported: Policy {
    /// Where `configure` puts the policy.
    fn slot() -> &'static OnceLock<Self>;
    /// The version as built, or as patched.
    fn version() -> &'static VersionMark;
}

/// Carries the contract's traits for a policy.
pub struct Guest<P>(PhantomData<P>);

/// The policy, in a call that comes after `configure`. The host promises that order; without a
/// policy there is no right answer, and a trap is the contract's way to say so.
fn policy<P: Exported>() -> &'static P {
    match P::slot().get() {
        Some(policy) => policy,
        None => std::process::abort(),
    }
}

impl<P: Exported> lifecycle::Guest for Guest<P> {
    fn describe() -> lifecycle::Description {
        lifecycle::Description {
            name: P::NAME.to_owned(),
            version: P::version().read(),
            settings_schema: P::SETTINGS_SCHEMA.to_owned(),
            metrics: P::METRICS.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn configure(settings: String, upstreams: Vec<String>) -> Result<Needs, Vec<Diagnostic>> {
        let policy = configured::<P>(&settings, &upstreams)?;
        let needs = policy.needs();
        match P::slot().set(policy) {
            Ok(()) => Ok(needs),
            Err(_) => Err(vec![Diagnostic {
                path: String::new(),
                message: "this instance already has settings".to_owned(),
            }]),
        }
    }
}

impl<P: Exported + freeze::Policy> crate::bindings::freeze::exports::wavegate::policy::freeze::Guest
    for Guest<P>
{
    fn decide(message: Transaction) -> freeze::Decision {
        policy::<P>().decide(&message)
    }
}

impl<P: Exported + routing::Policy>
    crate::bindings::routing::exports::wavegate::policy::routing::Guest for Guest<P>
{
    fn route(message: Transaction) -> routing::Decision {
        policy::<P>().route(&message)
    }
}

impl<P: Exported + throttling::Policy>
    crate::bindings::throttling::exports::wavegate::policy::throttling::Guest for Guest<P>
{
    fn limits(attempt: throttling::Attempt) -> throttling::LimitSet {
        policy::<P>().limits(&attempt)
    }

    fn observe(outcome: throttling::Outcome) -> Vec<throttling::Lesson> {
        policy::<P>().observe(&outcome)
    }
}
