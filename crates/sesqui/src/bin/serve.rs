//! Lends this machine's devices to programs on others.

use std::net::TcpListener;
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::server::{RemoteServer, WebSocketTransport};
use clap::Parser;
use sesqui::backend::{Backend, settle};
use sesqui::cli::DeviceArguments;
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::output::say;

/// Lend this machine's devices: `train --backend remote --host ws://THIS:3000` on another machine computes here.
///
/// Whoever reaches the port may compute, and nothing is encrypted: listen on a trusted network only, or on
/// 127.0.0.1 behind a tunnel. Files stay with the client; weights and batches come here. Serves until Ctrl-C.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    devices: DeviceArguments,

    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: String,
}

const EXAMPLES: &str = "\
Examples:
  serve --backend cuda --devices 0,1,2,3 --listen 0.0.0.0:3000
  train --backend remote --host ws://gpu:3000 --devices 0,1,2,3    on the other machine
Exit codes: 0 stopped, 1 failed, 2 wrong use.";

fn main() -> ExitCode {
    keep_freed_memory();
    let arguments = Arguments::parse();
    settle();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn serve(arguments: &Arguments) -> Result<()> {
    if arguments.devices.backend == Backend::Remote {
        return Err(Misuse("--backend remote: serve lends devices of this machine".into()).into());
    }
    let place = arguments.devices.open()?;
    let address = &arguments.listen;
    let listener = TcpListener::bind(address).map_err(|error| {
        Misuse(format!(
            "--listen {address}: {error}; give an address of this machine and a free port"
        ))
    })?;
    let bound = listener.local_addr().context("the address listened on")?;
    say(format!(
        "serving {}, {} device{}, at ws://{bound}",
        place.description(),
        place.workers().len(),
        if place.workers().len() == 1 { "" } else { "s" },
    ))?;
    let server = RemoteServer::new(place.workers().iter().cloned());
    server
        .serve(WebSocketTransport::from_listener(listener))
        .context("the server")
}
