//! Man pages and shell completions, made of the definition of the command line: for packages. Hidden,
//! because who runs the relay has no use for it. Floor 4.

use std::{fs, io::Write, path::PathBuf};

use clap::Subcommand;
use clap_complete::{Shell, generate_to};

/// What else the page of the program says, in troff.
const MORE: &str = r#".SH FILES
.TP
.I /etc/wavegate/relay.toml
The configuration. Saving it, or
.BR "systemctl reload wavegate" ,
puts it in force if all of it is right.
.I /usr/share/doc/wavegate/examples/relay.toml
has every setting with its default.
.TP
.I /var/lib/wavegate
What the relay keeps: the spool, the audit log, the control socket.
.SH SIGNALS
.TP
.B SIGHUP
reads the configuration, the plan and the policies anew; if anything in them is wrong, the old ones stay.
.TP
.BR SIGTERM ", " SIGINT
end the sessions at their next message, at most for
.IR limits.shutdown_timeout .
.SH ENVIRONMENT
.TP
.B WAVEGATE_LOG
what is logged, such as
.IR info " or " debug .
.SH "EXIT STATUS"
0 if it was done, else as sysexits has it: 64 wrong arguments, 65 a damaged file, 66 what was named is not there, 69 nobody
answers or an address cannot be bound, 70 a bug, 71 the machine refuses, 74 output failed, 75 not now, 77 not by this user,
78 wrong configuration; 1 where what was looked at is not as it should be, 130 where it was interrupted.
"#;

#[derive(Debug, Subcommand)]
pub(super) enum GenerateCommand {
    /// A man page of each command.
    Man {
        /// Where to; made if it is not there.
        directory: PathBuf,
    },
    /// Completions for bash, zsh and fish.
    Completions {
        /// Where to; made if it is not there.
        directory: PathBuf,
    },
}

/// Writes the files and names the directory.
pub(super) fn generate(
    command: &GenerateCommand,
    mut program: clap::Command,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let directory = match command {
        GenerateCommand::Man { directory } => {
            fs::create_dir_all(directory)?;
            clap_mangen::generate_to(program, directory)?;
            let mut page =
                fs::OpenOptions::new().append(true).open(directory.join("wavegate.1"))?;
            page.write_all(MORE.as_bytes())?;
            directory
        }
        GenerateCommand::Completions { directory } => {
            fs::create_dir_all(directory)?;
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                generate_to(shell, &mut program, "wavegate", directory)?;
            }
            directory
        }
    };
    writeln!(out, "{}", directory.display())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn made(command: impl FnOnce(PathBuf) -> GenerateCommand) -> (tempfile::TempDir, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let command = command(folder.path().join("new"));
        generate(&command, Cli::command(), &mut Vec::new()).unwrap();
        let files = fs::read_dir(folder.path().join("new")).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        (folder, names)
    }

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let (folder, names) = made(|directory| GenerateCommand::Man { directory });
        for name in ["wavegate.1", "wavegate-run.1", "wavegate-plan-notice.1"] {
            assert!(names.iter().any(|other| other == name), "{names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("generate") || name.contains("help")));
        let page = fs::read_to_string(folder.path().join("new/wavegate.1")).unwrap();
        assert!(page.contains(".SH SUBCOMMANDS") && page.contains(".SH \"EXIT STATUS\""), "{page}");
    }

    #[test]
    fn three_shells_complete() {
        let (_folder, names) = made(|directory| GenerateCommand::Completions { directory });
        assert_eq!(names, ["_wavegate", "wavegate.bash", "wavegate.fish"]);
    }
}
