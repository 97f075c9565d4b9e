//! Hugging Face checkpoints: `config.json` and `model.safetensors`, in and out.
//!
//! Strict: a tensor that is missing, left over or of another shape is an error that names it.

mod config;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, DType, Device};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::config::{ModelConfig, ModelConfigError};
use crate::transformer::Transformer;
use names::{Entry, Source};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that the shape calls for is not in the file.
    #[error("{path} has no tensor {name}, which this model needs as {shape:?}")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },
    /// Tensors that the model has no place for.
    #[error("{path} holds tensors that this model has no place for: {}", names.join(", "))]
    UnexpectedTensors {
        /// The file.
        path: PathBuf,
        /// The tensors.
        names: Vec<String>,
    },
    /// A tensor of another shape.
    #[error("{path}: tensor {name} is {found:?}, this model needs {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// The configuration describes a model that cannot be built.
    #[error(transparent)]
    Config(#[from] ModelConfigError),
}

/// The shape that `config.json` in `folder` describes. No weight is read.
///
/// # Errors
///
/// Names the file and the key that does not fit.
pub fn shape(folder: &Path) -> Result<ModelConfig, CheckpointError> {
    let (config, _vocabulary) = config::read(&folder.join("config.json"))?;
    Ok(config)
}

/// The number of token embeddings that `config.json` in `folder` describes. No weight is read.
///
/// # Errors
///
/// Names the file and the key that does not fit.
pub fn vocabulary(folder: &Path) -> Result<usize, CheckpointError> {
    let (_config, vocabulary) = config::read(&folder.join("config.json"))?;
    Ok(vocabulary)
}

/// Reads `config.json` and `model.safetensors` in `folder`. Half-precision weights become f32.
///
/// # Errors
///
/// Names the file and the tensor or key that does not fit.
pub fn load(folder: &Path, device: &Device) -> Result<Transformer, CheckpointError> {
    let (config, vocabulary) = config::read(&folder.join("config.json"))?;
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).map_err(|source| CheckpointError::Io {
        path: path.clone(),
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| CheckpointError::Format {
        path: path.clone(),
        reason: format!("not a safetensors file: {error}"),
    })?;
    let model = Transformer::new(&config, vocabulary, 0, device)?;
    let entries = names::entries(&config, vocabulary);
    check_nothing_left(&path, &file, &entries, &config)?;
    if config.tied_head {
        check_tied_head(&path, &file, &entries)?;
    }
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in &entries {
        let values = joined(&path, &file, entry)?;
        let bytes = Bytes::from_elems(values);
        let shape = entry.shape.clone();
        tensors.push(burn_pack::Tensor::new(
            entry.path.clone(),
            DType::F32,
            shape,
            None,
            bytes,
        ));
    }
    let failed = |reason: String| CheckpointError::Format {
        path: path.clone(),
        reason,
    };
    let packed = burn_pack::Writer::new(tensors)
        .into_bytes()
        .map_err(|error| failed(error.to_string()))?;
    ModuleRecord::from_bytes(packed)
        .and_then(|record| model.try_load_record(record))
        .map_err(|error| failed(error.to_string()))
}

/// Writes `config.json` and `model.safetensors` into `folder`, each under a temporary name first.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(model: &Transformer, folder: &Path) -> Result<(), CheckpointError> {
    let config = model.config();
    let entries = names::entries(config, model.vocabulary());
    let by_path: BTreeMap<String, Vec<f32>> = values(model).into_iter().collect();
    let mut pieces: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for entry in &entries {
        for (source, values) in split(entry, &by_path[&entry.path]) {
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            pieces.push((source.name.clone(), source.shape.clone(), bytes));
        }
    }
    let path = folder.join("model.safetensors");
    let format = |reason: String| CheckpointError::Format {
        path: path.clone(),
        reason,
    };
    let views = pieces
        .iter()
        .map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.as_str(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format(error.to_string()))?;
    let metadata = [("format".to_owned(), "pt".to_owned())]
        .into_iter()
        .collect();
    let bytes =
        safetensors::serialize(views, Some(metadata)).map_err(|error| format(error.to_string()))?;
    write(&path, &bytes)?;
    let text = config::to_json(config, model.vocabulary());
    write(&folder.join("config.json"), text.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io)?;
    // Not the temporary-file crate: its files can be read by their owner only.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = folder.join(format!(".{name}.draft"));
    std::fs::write(&draft, bytes).map_err(io)?;
    std::fs::rename(&draft, path).map_err(io)
}

/// Every float parameter by path, as f32.
fn values(model: &Transformer) -> Vec<(String, Vec<f32>)> {
    use burn::module::{ModuleVisitor, Param};
    use burn::tensor::Tensor;
    #[derive(Default)]
    struct Visitor {
        path: Vec<String>,
        rows: Vec<(String, Vec<f32>)>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values = param.val().into_data().iter::<f32>().collect();
            self.rows.push((self.path.join("."), values));
        }
    }
    let mut visitor = Visitor::default();
    model.visit(&mut visitor);
    visitor.rows
}

fn check_nothing_left(
    path: &Path,
    file: &SafeTensors<'_>,
    entries: &[Entry],
    config: &ModelConfig,
) -> Result<(), CheckpointError> {
    let known: Vec<&str> = entries
        .iter()
        .flat_map(|entry| &entry.sources)
        .map(|source| source.name.as_str())
        .collect();
    let mut names: Vec<String> = file
        .names()
        .into_iter()
        .filter(|name| {
            let name = names::canonical(name, config.family);
            // A tied head may be written out; it is then the embedding once more.
            let tied = config.tied_head && name == "lm_head.weight";
            !(tied || known.contains(&name) || names::is_buffer(name))
        })
        .map(ToString::to_string)
        .collect();
    names.sort();
    if names.is_empty() {
        Ok(())
    } else {
        Err(CheckpointError::UnexpectedTensors {
            path: path.to_owned(),
            names,
        })
    }
}

/// A tied head that is written out must be the embedding once more: it is not read.
fn check_tied_head(
    path: &Path,
    file: &SafeTensors<'_>,
    entries: &[Entry],
) -> Result<(), CheckpointError> {
    let head = "lm_head.weight";
    if names::spellings(head)
        .iter()
        .all(|name| file.tensor(name).is_err())
    {
        return Ok(());
    }
    let embedding = entries
        .iter()
        .find(|entry| entry.path == "token_embedding.weight");
    for source in embedding.into_iter().flat_map(|entry| &entry.sources) {
        let head = Source {
            name: head.to_owned(),
            shape: source.shape.clone(),
            transposed: false,
        };
        if read(path, file, &head)? != read(path, file, source)? {
            return Err(CheckpointError::Format {
                path: path.to_owned(),
                reason: format!(
                    "{} and {} differ, but config.json ties them; set tie_word_embeddings to false",
                    head.name, source.name
                ),
            });
        }
    }
    Ok(())
}

/// The values of one of our parameters: its sources side by side along the last dimension.
fn joined(path: &Path, file: &SafeTensors<'_>, entry: &Entry) -> Result<Vec<f32>, CheckpointError> {
    let parts = entry
        .sources
        .iter()
        .map(|source| read(path, file, source).map(|values| (source, values)))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = if entry.shape.len() == 2 {
        entry.shape[0]
    } else {
        1
    };
    let mut joined = Vec::with_capacity(entry.shape.iter().product());
    for row in 0..rows {
        for (source, values) in &parts {
            let columns = values.len() / rows;
            joined.extend((0..columns).map(|column| {
                values[if source.transposed {
                    column * rows + row
                } else {
                    row * columns + column
                }]
            }));
        }
    }
    Ok(joined)
}

/// The inverse of [`joined`].
fn split<'a>(entry: &'a Entry, joined: &[f32]) -> Vec<(&'a Source, Vec<f32>)> {
    let rows = if entry.shape.len() == 2 {
        entry.shape[0]
    } else {
        1
    };
    let width = joined.len() / rows;
    let mut start = 0;
    let mut parts = Vec::with_capacity(entry.sources.len());
    for source in &entry.sources {
        let columns = source.shape.iter().product::<usize>() / rows;
        let at = |row: usize, column: usize| joined[row * width + start + column];
        let values = if source.transposed {
            (0..columns)
                .flat_map(|column| (0..rows).map(move |row| (row, column)))
                .map(|(r, c)| at(r, c))
                .collect()
        } else {
            (0..rows)
                .flat_map(|row| (0..columns).map(move |column| (row, column)))
                .map(|(r, c)| at(r, c))
                .collect()
        };
        start += columns;
        parts.push((source, values));
    }
    parts
}

fn read(path: &Path, file: &SafeTensors<'_>, source: &Source) -> Result<Vec<f32>, CheckpointError> {
    let view = names::spellings(&source.name)
        .iter()
        .find_map(|name| file.tensor(name).ok())
        .ok_or_else(|| CheckpointError::MissingTensor {
            path: path.to_owned(),
            name: source.name.clone(),
            shape: source.shape.clone(),
        })?;
    if view.shape() != source.shape {
        return Err(CheckpointError::Shape {
            path: path.to_owned(),
            name: source.name.clone(),
            found: view.shape().to_vec(),
            expected: source.shape.clone(),
        });
    }
    let data = view.data();
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    match view.dtype() {
        Dtype::F32 => Ok(data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()),
        Dtype::BF16 => Ok(data
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(half(b)) << 16))
            .collect()),
        Dtype::F16 => Ok(data
            .chunks_exact(2)
            .map(|b| burn::tensor::f16::from_bits(half(b)).to_f32())
            .collect()),
        other => Err(CheckpointError::Format {
            path: path.to_owned(),
            reason: format!(
                "tensor {} is {other:?}; float32, bfloat16 and float16 are read",
                source.name
            ),
        }),
    }
}
