//! Arguments that the programs share.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use sesqui_run::{ConfigSource, Resolved, RunPaths};

use crate::backend::{Backend, Place};
use crate::experiment::Experiment;
use crate::misuse::Misuse;

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Which configuration.
#[derive(Args, Clone, Debug)]
pub struct ConfigArguments {
    /// Experiment file [default: the built-in arith-dag quick start]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Override one setting; repeatable, for example --set stages.cot.training.steps=600
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Leave out malformed rows, counted and reported, instead of stopping at the first
    #[arg(long)]
    pub skip_bad_rows: bool,
}

/// Where to compute.
#[derive(Args, Clone, Debug)]
pub struct DeviceArguments {
    /// Where tensors live
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,

    /// Devices of the backend, counted from 0, that the parts of a training step are spread over; the first
    /// one answers questions; on the CPU a number is a worker [default: one; on the CPU one for each core]
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    pub devices: Vec<usize>,

    /// Address of the server of --backend remote, for example ws://gpu:3000
    #[arg(long, value_name = "URL")]
    pub host: Option<String>,
}

/// Where to compute and where the data is.
#[derive(Args, Clone, Debug)]
pub struct PlaceArguments {
    /// Where to compute.
    #[command(flatten)]
    pub devices: DeviceArguments,

    /// Folder that holds one folder per published data set [default: $SESQUI_DATA, else datasets/]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
}

impl DeviceArguments {
    /// Opens the devices.
    ///
    /// # Errors
    ///
    /// As [`Backend::open`].
    pub fn open(&self) -> Result<Place, Misuse> {
        self.backend.open(&self.devices, self.host.as_deref())
    }
}

impl ConfigArguments {
    /// Resolves defaults, file and overrides, in this order.
    ///
    /// # Errors
    ///
    /// Names the key, where it was set, and the nearest valid one.
    pub fn resolve(&self) -> Result<Resolved<Experiment>> {
        let source = match &self.config {
            Some(path) => ConfigSource::File(path.clone()),
            None => ConfigSource::Defaults,
        };
        let mut overrides = self.set.clone();
        if self.skip_bad_rows {
            overrides.push("bad_rows=skip".to_owned());
        }
        Ok(sesqui_run::load(source, &overrides)?)
    }

    /// These arguments; where they say nothing, what the run in `folder` was started with, if there is one.
    ///
    /// # Errors
    ///
    /// When the run's configuration cannot be read.
    pub fn or_of(&self, folder: Option<&Path>) -> Result<Self> {
        let silent = self.config.is_none() && self.set.is_empty() && !self.skip_bad_rows;
        let own = folder.map(|folder| RunPaths::new(folder).config());
        match own {
            Some(own) if silent && own.is_file() => {
                // The quick start has a name of its own.
                let quick_start = text(&own)? == self.resolve()?.text;
                Ok(Self {
                    config: (!quick_start).then_some(own),
                    ..self.clone()
                })
            }
            _ => Ok(self.clone()),
        }
    }

    /// The name of the variant in run directories: the file's study and stem.
    pub fn variant(&self) -> String {
        match &self.config {
            None => "arith-dag".to_owned(),
            Some(path) => {
                let stem = path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let study = path.parent().and_then(Path::file_name);
                match study {
                    Some(study) => format!("{}-{stem}", study.to_string_lossy()),
                    None => stem,
                }
            }
        }
    }
}
