//! Text to token ids and back.
//!
//! Three kinds: GPT-2's published byte-level byte-pair encoding, any `tokenizer.json`, and small
//! vocabularies made from the training split. Whatever the kind, it is saved as a standard
//! `tokenizer.json`, and its [hash](Tokenizer::hash) identifies the mapping a model was trained with.

mod byte_pair;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers as hf;

use crate::error::DatasetError;

/// The reserved tokens of a trained tokenizer, at ids 0, 1, 2, ... The text markers of the default
/// [`TextFormat`](crate::encode::TextFormat) are among them, so each is one token.
pub const RESERVED: [&str; 7] = ["<pad>", "<eos>", "||", "<<", ">>", "####", "<unk>"];

/// The reserved tokens that text never turns into, even when it contains their name.
const CONTROL: [&str; 3] = ["<pad>", "<eos>", "<unk>"];

/// Names of the end-of-sequence token in published vocabularies, looked for in this order.
const END_NAMES: [&str; 6] = [
    "<eos>",
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<|im_end|>",
    "[SEP]",
];

/// Names of the padding token, looked for in this order; without one the end token also pads.
const PAD_NAMES: [&str; 4] = ["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"];

/// Where the vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// GPT-2's byte-level byte-pair encoding, 50,257 tokens (Radford et al. 2019).
    Gpt2 {
        /// Folder below the data root with `vocab.json` and `merges.txt`.
        #[serde(default = "gpt2_folder")]
        folder: PathBuf,
    },
    /// A `tokenizer.json` as the Hugging Face libraries write it.
    File {
        /// The file; a relative path counts from the data root.
        path: PathBuf,
        /// The end-of-sequence token, if its name is not one of the usual ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end_token: Option<String>,
        /// The padding token, if its name is not one of the usual ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pad_token: Option<String>,
    },
    /// A vocabulary made from the training split: the seven reserved tokens, the ten digits, and more.
    Trained {
        /// Most tokens that the vocabulary may have, reserved ones included.
        #[serde(default = "trained_vocab_size")]
        vocab_size: usize,
        /// What the other tokens are.
        #[serde(default)]
        model: TrainedModel,
    },
}

/// What a trained vocabulary is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainedModel {
    /// One token per Unicode character of the training text, sorted by code point. Other characters
    /// become `<unk>`.
    #[default]
    Characters,
    /// All 256 bytes and the commonest merges of them (Sennrich et al. 2016), digits one token each;
    /// any text round-trips.
    BytePair,
    /// As [`BytePair`](Self::BytePair), but a whole number, `12` or `2.5`, is one token where it is
    /// common enough, and `=` is never merged. Other numbers are written in digits.
    ///
    /// The state before a result then has to know all of it, not only its first digit.
    BytePairNumbers,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self::Trained {
            vocab_size: trained_vocab_size(),
            model: TrainedModel::default(),
        }
    }
}

impl TokenizerConfig {
    /// Loads a tokenizer that was [saved](Tokenizer::save) from this configuration; it differs from
    /// [`Tokenizer::load`] only where the configuration names the end or padding token.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load(
        &self,
        path: &Path,
        expected_hash: Option<&str>,
    ) -> Result<Tokenizer, DatasetError> {
        let (end, pad) = match self {
            Self::File {
                end_token,
                pad_token,
                ..
            } => (end_token.as_deref(), pad_token.as_deref()),
            Self::Gpt2 { .. } | Self::Trained { .. } => (None, None),
        };
        let tokenizer = Tokenizer::read(path, end, pad)?;
        let hash = tokenizer.hash()?;
        match expected_hash {
            Some(expected) if expected != hash => Err(DatasetError::Tokenizer(format!(
                "{} has hash {hash}, but {expected} is expected: it is not the tokenizer that the \
                 model or the data was made with; use the one saved with them",
                path.display()
            ))),
            _ => Ok(tokenizer),
        }
    }
}

/// A vocabulary with its rules. Encoding and decoding are functions of the text alone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: hf::Tokenizer,
    pad_id: u32,
    eos_id: u32,
    vocab_size: usize,
    unknown_id: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("pad_id", &self.pad_id)
            .field("eos_id", &self.eos_id)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads or trains the configured tokenizer. `training_texts` are the texts of the training
    /// split and the markers between them, in any order; only [`TokenizerConfig::Trained`] looks at
    /// them.
    ///
    /// # Errors
    /// A file is missing or malformed, or the vocabulary size cannot hold what it must.
    pub fn from_config<'a>(
        config: &TokenizerConfig,
        data_root: &Path,
        training_texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, DatasetError> {
        match config {
            TokenizerConfig::Gpt2 { folder } => Self::gpt2(&data_root.join(folder)),
            TokenizerConfig::File {
                path,
                end_token,
                pad_token,
            } => Self::read(
                &data_root.join(path),
                end_token.as_deref(),
                pad_token.as_deref(),
            ),
            TokenizerConfig::Trained { vocab_size, model } => match model {
                TrainedModel::Characters => Self::characters(*vocab_size, training_texts),
                TrainedModel::BytePair => {
                    Self::byte_pair(*vocab_size, Numbers::Digits, training_texts)
                }
                TrainedModel::BytePairNumbers => {
                    Self::byte_pair(*vocab_size, Numbers::Whole, training_texts)
                }
            },
        }
    }

    /// Token ids of `text`; nothing is added at either end.
    ///
    /// # Errors
    /// The tokenizer library refuses, for example for a vocabulary without an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DatasetError> {
        let encoding = self.inner.encode_fast(text, false).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`. Padding and end-of-sequence tokens are left out; text markers stay, and an
    /// unknown token shows as its name. Bytes that are no UTF-8 show as U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DatasetError> {
        let mut shown = Vec::with_capacity(ids.len());
        for &id in ids {
            if id == self.pad_id || id == self.eos_id {
                continue;
            }
            if self.inner.id_to_token(id).is_none() {
                return Err(DatasetError::Tokenizer(format!(
                    "id {id} is not in the vocabulary of {} tokens",
                    self.vocab_size
                )));
            }
            shown.push(id);
        }
        self.inner.decode(&shown, false).map_err(refused)
    }

    /// One more than the largest id: the rows an embedding table needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that fills up short rows.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The token that ends an answer.
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// The token for text outside the vocabulary, where there can be such text.
    pub fn unknown_id(&self) -> Option<u32> {
        self.unknown_id
    }

    /// What a token stands for, for display; `None` outside the vocabulary. Unlike
    /// [`decode`](Self::decode) it shows padding and end tokens by name.
    pub fn token_text(&self, id: u32) -> Option<String> {
        let name = self.inner.id_to_token(id)?;
        Some(self.inner.decode(&[id], false).unwrap_or(name))
    }

    /// Writes [`to_json`](Self::to_json) to a `tokenizer.json`, replacing the file as a whole.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DatasetError> {
        let json = self.to_json()?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let write = || -> std::io::Result<()> {
            // Not the temporary-file crate: its files can be read by their owner only.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let draft = folder.join(format!(".{name}.draft"));
            let mut file = std::fs::File::create(&draft)?;
            file.write_all(json.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, path)
        };
        write().map_err(|error| {
            DatasetError::Tokenizer(format!("cannot write {}: {error}", path.display()))
        })
    }

    /// Reads a `tokenizer.json`. The end and padding tokens are found by their usual names.
    ///
    /// # Errors
    /// The file is missing or malformed, has no end token of a usual name, or its hash is not
    /// `expected_hash`.
    pub fn load(path: &Path, expected_hash: Option<&str>) -> Result<Self, DatasetError> {
        TokenizerConfig::default().load(path, expected_hash)
    }

    /// The tokenizer as the text of a `tokenizer.json`; equal for equal tokenizers.
    ///
    /// # Errors
    /// The tokenizer library refuses.
    pub fn to_json(&self) -> Result<String, DatasetError> {
        self.inner.to_string(false).map_err(refused)
    }

    /// SHA-256 of [`to_json`](Self::to_json), in hexadecimal.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json).
    pub fn hash(&self) -> Result<String, DatasetError> {
        let digest = Sha256::digest(self.to_json()?.as_bytes());
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn gpt2(folder: &Path) -> Result<Self, DatasetError> {
        let mut names = Vec::new();
        for name in ["vocab.json", "merges.txt"] {
            let path = folder.join(name);
            if !path.is_file() {
                return Err(DatasetError::Missing {
                    data_set: "the GPT-2 tokenizer".into(),
                    path,
                    hint: "put OpenAI's encoder.json there as vocab.json and vocab.bpe as \
                           merges.txt, or set the tokenizer's folder"
                        .into(),
                });
            }
            names.push(path.to_string_lossy().into_owned());
        }
        let model = hf::models::bpe::BPE::from_file(&names[0], &names[1])
            .build()
            .map_err(|error| DatasetError::Tokenizer(format!("{}: {error}", folder.display())))?;
        let mut inner = byte_level(model, Numbers::Merged)?;
        let end = hf::AddedToken::from("<|endoftext|>", true);
        inner.add_special_tokens([end]).map_err(refused)?;
        Self::wrap(inner, None, None)
    }

    fn read(path: &Path, end: Option<&str>, pad: Option<&str>) -> Result<Self, DatasetError> {
        let bytes = std::fs::read(path).map_err(|source| DatasetError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        let mut inner = hf::Tokenizer::from_bytes(bytes).map_err(|error| {
            DatasetError::Tokenizer(format!(
                "{} is not a tokenizer.json that can be used here: {error}",
                path.display()
            ))
        })?;
        // Published files may say to cut, to pad or to drop merges at random; here lengths are the
        // batcher's business and encoding is a function of the text.
        inner.with_truncation(None).map_err(refused)?;
        inner.with_padding(None);
        if let hf::ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }
        Self::wrap(inner, end, pad)
            .map_err(|error| DatasetError::Tokenizer(format!("{}: {error}", path.display())))
    }

    fn characters<'a>(
        vocab_size: usize,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, DatasetError> {
        // Digits are always there: an answer may need one that the training split happens to lack.
        let mut characters: BTreeSet<char> = ('0'..='9').collect();
        for text in texts {
            characters.extend(text.chars());
        }
        let needed = RESERVED.len() + characters.len();
        if needed > vocab_size {
            return Err(DatasetError::Config(format!(
                "the training text has {} different characters, with the reserved tokens {needed}, \
                 but vocab_size is {vocab_size}; raise it or use model = \"byte-pair\"",
                characters.len()
            )));
        }
        let tokens = RESERVED.iter().map(|token| (*token).to_owned());
        let tokens = tokens.chain(characters.iter().map(char::to_string));
        let model = hf::models::wordlevel::WordLevel::builder()
            .vocab(tokens.zip(0u32..).collect())
            .unk_token("<unk>".into())
            .build()
            .map_err(refused)?;
        let single = hf::pre_tokenizers::split::Split::new(
            hf::pre_tokenizers::split::SplitPattern::Regex(r"[\s\S]".into()),
            hf::SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(refused)?;
        let mut inner = hf::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(single));
        inner.with_decoder(Some(hf::decoders::fuse::Fuse::new()));
        reserve(&mut inner)?;
        Self::wrap(inner, None, None)
    }

    fn byte_pair<'a>(
        vocab_size: usize,
        numbers: Numbers,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, DatasetError> {
        // The rules without the merges cut the text into the words that merges stay within.
        let mut splitter = byte_level(hf::models::bpe::BPE::default(), numbers)?;
        reserve(&mut splitter)?;
        let words = byte_pair::count_words(&splitter, texts)?;
        let model = byte_pair::train(words, &RESERVED, vocab_size, numbers)?;
        let mut inner = byte_level(model, numbers)?;
        reserve(&mut inner)?;
        Self::wrap(inner, None, None)
    }

    fn wrap(
        mut inner: hf::Tokenizer,
        end: Option<&str>,
        pad: Option<&str>,
    ) -> Result<Self, DatasetError> {
        let named = |name: &str| {
            inner.token_to_id(name).ok_or_else(|| {
                DatasetError::Tokenizer(format!("the vocabulary has no token {name:?}"))
            })
        };
        let usual = |names: &[&str]| names.iter().find_map(|name| inner.token_to_id(name));
        let eos_id = match end {
            Some(name) => named(name)?,
            None => usual(&END_NAMES).ok_or_else(|| {
                DatasetError::Tokenizer(format!(
                    "the vocabulary has no end-of-sequence token called one of {END_NAMES:?}; name \
                     it with end_token"
                ))
            })?,
        };
        let pad_id = match pad {
            Some(name) => named(name)?,
            None => usual(&PAD_NAMES).unwrap_or(eos_id),
        };
        let trained = (0u32..).zip(RESERVED).all(|(id, token)| {
            inner.token_to_id(token) == Some(id) && inner.id_to_token(id).as_deref() == Some(token)
        });
        // Not part of the file format, so it is set again on every load.
        inner.set_encode_special_tokens(trained);
        let vocab_size = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |largest| largest as usize + 1);
        let unknown_id = match inner.get_model() {
            hf::ModelWrapper::WordLevel(model) => inner.token_to_id(&model.unk_token),
            hf::ModelWrapper::WordPiece(model) => inner.token_to_id(&model.unk_token),
            hf::ModelWrapper::BPE(model) => {
                let name = model.unk_token.as_deref();
                name.and_then(|name| inner.token_to_id(name))
            }
            hf::ModelWrapper::Unigram(_) => inner.token_to_id("<unk>"),
        };
        Ok(Self {
            inner,
            pad_id,
            eos_id,
            vocab_size,
            unknown_id,
        })
    }
}

/// How byte-level rules cut numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    /// Runs of digits are words like any other: GPT-2.
    Merged,
    /// Each digit is a word.
    Digits,
    /// A number with its decimal point is a word, which is one token or digits.
    Whole,
}

/// Words of [`Numbers::Whole`]: GPT-2's, but for numbers in ASCII digits, which have their point and no
/// space before them, so that a number is the same word in a question and in an equation; and for
/// `=`, at which latent steps are read, so that no merge hides it.
const WHOLE_NUMBERS: &str =
    r"[0-9]+(?:\.[0-9]+)?|=|'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}=]+|\s+(?!\S)|\s+";

/// Byte-level rules as GPT-2 has them, but for `numbers`.
fn byte_level(
    model: hf::models::bpe::BPE,
    numbers: Numbers,
) -> Result<hf::Tokenizer, DatasetError> {
    use hf::SplitDelimiterBehavior::Isolated;
    use hf::pre_tokenizers::split::{Split, SplitPattern};
    use hf::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
    let bytes = ByteLevel::new(false, true, true);
    let mut inner = hf::Tokenizer::new(model);
    match numbers {
        Numbers::Merged => inner.with_pre_tokenizer(Some(bytes)),
        Numbers::Digits => {
            let steps = vec![Digits::new(true).into(), bytes.into()];
            inner.with_pre_tokenizer(Some(Sequence::new(steps)))
        }
        Numbers::Whole => {
            let pattern = SplitPattern::Regex(WHOLE_NUMBERS.into());
            let words = Split::new(pattern, Isolated, false).map_err(refused)?;
            // GPT-2's own pattern would cut at the point.
            let bytes = bytes.use_regex(false);
            inner.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), bytes.into()])))
        }
    };
    inner.with_decoder(Some(bytes));
    Ok(inner)
}

/// Makes the reserved tokens whole: text markers are cut out of the text before anything else.
fn reserve(inner: &mut hf::Tokenizer) -> Result<(), DatasetError> {
    let tokens = RESERVED
        .map(|token| hf::AddedToken::from(token, CONTROL.contains(&token)).normalized(false));
    inner.set_encode_special_tokens(true);
    inner.add_tokens(tokens).map_err(refused)?;
    Ok(())
}

fn refused(error: hf::Error) -> DatasetError {
    DatasetError::Tokenizer(error.to_string())
}

fn gpt2_folder() -> PathBuf {
    PathBuf::from("gpt2-tokenizer")
}

fn trained_vocab_size() -> usize {
    512
}
