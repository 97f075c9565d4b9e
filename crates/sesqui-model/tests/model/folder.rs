//! Hugging Face folders to take apart.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use sesqui_model::{ModelConfig, Transformer, Visibility, huggingface};

use crate::support::{integers, plain, row_positions, shaken, values};

pub const VOCABULARY: usize = 13;

pub fn saved(config: &ModelConfig) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    huggingface::save(&shaken(config, VOCABULARY, 33, &plain()), folder.path()).unwrap();
    folder
}

pub fn logits(model: &Transformer) -> Vec<f32> {
    let ids = integers(&[1, 2, 3, 12, 0], [1, 5], &plain());
    values(model.forward(
        ids,
        row_positions(0, 5, &plain()),
        Visibility::causal(5, &plain()),
    ))
}

pub fn refused(folder: &Path, file: &str, expected: &str) {
    let error = huggingface::load(folder, &plain()).unwrap_err().to_string();
    let path = folder.join(file);
    assert_eq!(error.replace(&path.display().to_string(), "FILE"), expected);
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub type Tensors = BTreeMap<String, Stored>;

#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn zeros(shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes,
        }
    }
}

pub fn edit_tensors(folder: &Path, edit: impl Fn(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, view)| {
            let bytes = view.data().to_vec();
            (
                name.to_owned(),
                Stored {
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes,
                },
            )
        })
        .collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, tensor)| {
        (
            name,
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub fn edit_config(folder: &Path, edit: &Value) {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in edit.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
}
