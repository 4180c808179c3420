//! What the tests of a policy start from.

use crate::types::{Instance, Transaction};

/// An ordinary message of no instance; a test changes what it is about.
pub fn transaction() -> Transaction {
    Transaction {
        id: "01JZ3N6V8C4S".into(),
        now: 1_768_888_800_000,
        received: 1_768_888_800_000,
        client: "192.0.2.7".into(),
        sender: "news@mkt.acme.example".into(),
        recipients: vec!["jo@customer.example".into()],
        size: 10_240,
        attempts: 0,
        instance: None,
        bucket: 4_200,
        attributes: Vec::new(),
        upstreams: Vec::new(),
    }
}

/// An instance in that phase, with no window: before it is `legacy`, after it `cloud`.
pub fn instance(phase: &str) -> Instance {
    Instance {
        name: "acme-prod-1".into(),
        product: "campaign-classic".into(),
        environment: "production".into(),
        phase: phase.into(),
        window: None,
        before: "legacy".into(),
        after: "cloud".into(),
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub use program::Wavegate;

/// The built plugin, asked by the program that relays run: `cargo test` of a plugin's project can
/// run its cases.
#[cfg(not(target_arch = "wasm32"))]
mod program {
    use std::env;
    use std::ffi::{OsStr, OsString};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The `wavegate` program: what the variable `WAVEGATE` names, or the one in the path.
    ///
    /// ```no_run
    /// # use wavegate_policy::testing::Wavegate;
    /// Wavegate::new().build().test("cases");
    /// ```
    #[derive(Debug)]
    pub struct Wavegate {
        program: OsString,
        project: PathBuf,
        plugin: PathBuf,
    }

    impl Default for Wavegate {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Wavegate {
        /// For the plugin `NAME.wasm` of the project that is tested.
        pub fn new() -> Self {
            let project =
                env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
            let name = env::var("CARGO_PKG_NAME").unwrap_or_else(|_| "plugin".into());
            let program = env::var_os("WAVEGATE").unwrap_or_else(|| "wavegate".into());
            Self { program, plugin: format!("{name}.wasm").into(), project }
        }

        /// For another file; a relative path is one from the project.
        pub fn plugin(self, file: impl Into<PathBuf>) -> Self {
            Self { plugin: file.into(), ..self }
        }

        /// Builds the project, so that its tests are about what its sources say.
        ///
        /// # Panics
        /// With what the program says, if that fails.
        pub fn build(self) -> Self {
            self.run(["plugin", "build"].map(OsStr::new));
            self
        }

        /// Runs cases: a directory or a file; a relative path is one from the project.
        ///
        /// # Panics
        /// With what the program says, if one fails.
        pub fn test(&self, cases: impl AsRef<Path>) {
            let cases = cases.as_ref().as_os_str();
            let [plugin, test, option] = ["plugin", "test", "--cases"].map(OsStr::new);
            self.run([plugin, test, self.plugin.as_os_str(), option, cases]);
        }

        fn run<const N: usize>(&self, arguments: [&OsStr; N]) {
            let mut command = Command::new(&self.program);
            if !self.project.as_os_str().is_empty() {
                command.current_dir(&self.project);
            }
            let program = self.program.display();
            let output = command.args(arguments).output().unwrap_or_else(|error| {
                panic!("{program}: {error}; set WAVEGATE to where the program is")
            });
            let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
            assert!(
                output.status.success(),
                "{program} {arguments:?}: {}\n{}{}",
                output.status,
                said(&output.stdout),
                said(&output.stderr)
            );
        }
    }

    #[cfg(test)]
    mod tests {
        use super::Wavegate;

        /// A shell in place of the program.
        fn run(script: &str) {
            let shell = Wavegate { program: "/bin/sh".into(), ..Wavegate::new() };
            shell.run(["-c", script].map(std::ffi::OsStr::new));
        }

        #[test]
        fn what_succeeds_passes() {
            run("test -f Cargo.toml");
        }

        #[test]
        #[should_panic(expected = "one case failed")]
        fn what_fails_is_told() {
            run("echo one case failed; exit 1");
        }

        #[test]
        #[should_panic(expected = "set WAVEGATE to where the program is")]
        fn a_program_that_is_not_there_is_told() {
            Wavegate { program: "/nonexistent/wavegate".into(), ..Wavegate::new() }.test("cases");
        }
    }
}
