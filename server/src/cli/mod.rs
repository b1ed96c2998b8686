//! The command line.
//!
//! Keeps: results on stdout, the rest on stderr; every error ends with a documented exit code and says what to do
//! next. Everything but `serve`, `setup`, `doctor`, `restore` and `salvage` speaks to the daemon over its socket and
//! nothing else; only `rescue`, for folders that no daemon has, knows the engine.

mod admin;
pub(crate) mod args;
mod doctor;
pub(crate) mod exit;
mod export;
mod host;
pub(crate) mod import;
pub(crate) mod memory;
pub(crate) mod output;
pub(crate) mod progress;
mod rescue;
mod serve;
mod show;
mod top;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use serde_json::json;

use crate::client::{self, Client, StartOptions};
use crate::embed::{Device, Precision};
use crate::provision::{self, Build, Wanted};
use args::{Cli, Command, DeviceArg, Global, PrecisionArg};
use exit::{CliError, Exit};
use output::{BAD, Output};

/// How long an ordinary call may take before it is given up.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// How long work over the whole store may take.
pub(crate) const UPKEEP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Runs the program: parses the command line, does what it says, and gives the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_usage(&error),
    };
    let context = Context::new(cli.global);
    let exit = match context.run(cli.command) {
        Ok(exit) => exit,
        Err(error) => context.report(&error),
    };
    ExitCode::from(exit as u8)
}

/// What clap says about a wrong command line, and the JSON document where one was asked for.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to do where the message cannot be written.
    let _ = error.print();
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && wants_json {
        let message = error.render().to_string();
        let error = CliError::new(Exit::Usage, message.trim());
        let _ = Output { json: true }.document(&json!({ "error": error }));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8))
}

/// What every command has.
#[derive(Debug)]
pub(crate) struct Context {
    /// The options of every command.
    pub global: Global,
    /// Where to print.
    pub out: Output,
}

impl Context {
    fn new(global: Global) -> Self {
        let out = Output::new(&global);
        Context { global, out }
    }

    fn run(&self, command: Command) -> Result<Exit, CliError> {
        match command {
            Command::Serve(args) => serve::serve(self, &args),
            Command::Setup(args) => serve::setup(self, &args),
            Command::Demo(args) => crate::demo::run(self, &args),
            Command::Add(args) => memory::add(self, args),
            Command::Search(args) => memory::search(self, args),
            Command::Get(args) => memory::get(self, args),
            Command::List(args) => memory::list(self, args),
            Command::Around(args) => memory::around(self, args),
            Command::Update(args) => memory::update(self, args),
            Command::Delete(args) => memory::delete(self, args),
            Command::Import(args) => import::import(self, &args),
            Command::Export(args) => export::export(self, &args),
            Command::Space(args) => admin::space(self, args),
            Command::Status => admin::status(self),
            Command::Top(args) => top::top(self, &args),
            Command::Metrics => admin::metrics(self),
            Command::Doctor => doctor::doctor(self),
            Command::Verify => admin::verify(self),
            Command::Compact => admin::compact(self),
            Command::Sync => admin::sync(self),
            Command::Snapshot(args) => admin::snapshot(self, &args),
            Command::Restore(args) => rescue::restore(self, &args),
            Command::Salvage(args) => rescue::salvage(self, &args),
            Command::Shutdown => admin::shutdown(self),
            Command::Completions(args) => {
                let mut script = Vec::new();
                clap_complete::generate(args.shell, &mut Cli::command(), "flashbulb", &mut script);
                std::io::Write::write_all(&mut std::io::stdout(), &script)?;
                Ok(Exit::Ok)
            }
        }
    }

    /// Prints an error: for people on stderr, as JSON on stdout.
    fn report(&self, error: &CliError) -> Exit {
        if error.silent {
            return error.exit;
        }
        self.out.note(format_args!("{BAD}error:{BAD:#} {}", output::safe(&error.message)));
        if self.out.json {
            // Nothing is left to do where stdout cannot be written either.
            let _ = self.out.document(&json!({ "error": error }));
        }
        error.exit
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.global.socket.clone().unwrap_or_else(client::default_socket)
    }

    /// The data directory.
    pub fn store(&self) -> Result<PathBuf, CliError> {
        match &self.global.store {
            Some(store) => Ok(store.clone()),
            None => Ok(client::default_store()?),
        }
    }

    /// Which runtime and model are wanted.
    pub fn wanted(&self) -> Wanted {
        let build = match self.global.device {
            DeviceArg::Cpu => Build::Cpu,
            DeviceArg::Preferred | DeviceArg::Required => Build::AcceleratedIfInstalled,
        };
        Wanted {
            runtime: self.global.runtime.clone(),
            build,
            model: self.global.model.clone(),
            python: self.global.python.clone(),
            offline: self.global.offline,
        }
    }

    /// Which precision is wanted.
    pub fn precision(&self) -> Precision {
        match self.global.precision {
            PrecisionArg::Auto => Precision::Auto,
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Int8 => Precision::Int8,
        }
    }

    /// Which device is wanted.
    pub fn device(&self) -> Device {
        match self.global.device {
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Preferred => Device::Preferred,
            DeviceArg::Required => Device::Required,
        }
    }

    /// A client of the daemon that runs.
    pub fn running(&self) -> Result<Client, CliError> {
        Ok(Client::connect(&self.socket())?)
    }

    /// A client of the daemon; where none runs, one is started.
    pub fn client(&self) -> Result<Client, CliError> {
        let socket = self.socket();
        match Client::connect(&socket) {
            Err(client::ClientError::NoDaemon { .. }) if !self.global.no_start => {}
            Err(error) => return Err(error.into()),
            Ok(mut client) => {
                self.check_running(&mut client)?;
                return Ok(client);
            }
        }
        // Fetching the model is this command's to show; the daemon then finds everything there.
        provision::ensure(&self.wanted(), &provision::Drawn::default())?;
        let options = StartOptions {
            socket,
            program: None,
            arguments: self.serve_arguments()?,
            log: client::log_path()?,
        };
        self.out
            .note(format_args!("flashbulb: starting the daemon (log: {})", options.log.display()));
        let spinner = progress::spinner("starting the daemon");
        let client = client::connect_or_start(&options, &mut |line| {
            spinner.set_message(format!("starting the daemon: {}", output::one_line(line, 100)));
        });
        spinner.finish_and_clear();
        Ok(client?)
    }

    /// A daemon that runs already has its own store and device; a request meant for another must not reach it.
    fn check_running(&self, client: &mut Client) -> Result<(), CliError> {
        if self.global.store.is_none() && self.global.device != DeviceArg::Required {
            return Ok(());
        }
        let status: serde_json::Value = client.call("admin.status", json!({}), CALL_TIMEOUT)?;
        let used = status.pointer("/embedder/device/used").and_then(|used| used.as_str());
        if self.global.device == DeviceArg::Required && used == Some("cpu") {
            let message = format!(
                "the daemon at {} runs the model on the processor, and --device required was given; stop it with \
                 `flashbulb shutdown`, or name another --socket and --store",
                client.path().display()
            );
            return Err(CliError::new(Exit::Conflict, message));
        }
        self.check_store(client, &status)
    }

    fn check_store(&self, client: &Client, status: &serde_json::Value) -> Result<(), CliError> {
        let Some(wanted) = &self.global.store else {
            return Ok(());
        };
        let Some(used) = status.get("store_dir").and_then(|dir| dir.as_str()) else {
            return Ok(());
        };
        let same_place = |path: &Path| std::fs::canonicalize(path).ok();
        if same_place(Path::new(used)) == same_place(wanted) {
            return Ok(());
        }
        let message = format!(
            "the daemon at {} has the store {used}, not {}; name another --socket for another store",
            client.path().display(),
            wanted.display()
        );
        Err(CliError::new(Exit::Conflict, message))
    }

    /// Arguments of `serve` that make it use what this command line names. Paths are made absolute, because
    /// the daemon outlives the folder it was started from.
    fn serve_arguments(&self) -> Result<Vec<OsString>, CliError> {
        let mut arguments = vec!["--store".into(), absolute(self.store()?)?.into_os_string()];
        arguments.extend(self.model_arguments()?);
        Ok(arguments)
    }

    /// Arguments that name the runtime, the model, the precision and the device.
    pub fn model_arguments(&self) -> Result<Vec<OsString>, CliError> {
        let mut arguments = Vec::new();
        for (name, path) in [
            ("--runtime", &self.global.runtime),
            ("--model", &self.global.model),
            ("--python", &self.global.python),
        ] {
            if let Some(path) = path {
                arguments.push(name.into());
                arguments.push(absolute(path.clone())?.into_os_string());
            }
        }
        if self.global.offline {
            arguments.push("--offline".into());
        }
        let precision = match self.global.precision {
            PrecisionArg::Auto => "auto",
            PrecisionArg::F32 => "f32",
            PrecisionArg::Int8 => "int8",
        };
        let device = match self.global.device {
            DeviceArg::Cpu => "cpu",
            DeviceArg::Preferred => "preferred",
            DeviceArg::Required => "required",
        };
        let both = ["--precision", precision, "--device", device];
        arguments.extend(both.map(OsString::from));
        Ok(arguments)
    }
}

/// A path that means the same from every folder.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(&path)
        .map_err(|error| CliError::invalid(format!("{}: {error}", path.display())))
}
