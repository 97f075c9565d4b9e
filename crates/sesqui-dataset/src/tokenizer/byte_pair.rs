//! Training of byte-level byte-pair merges (Sennrich et al. 2016, arXiv 1508.07909).
//!
//! Written out here rather than left to the tokenizer library, whose trainer lets merges run across
//! the reserved tokens, counts in 32 bits and walks hash maps with random seeds: its result was seen
//! to be stable, but nothing promises that. This one depends on nothing but the word counts; ties go
//! to the pair with the smaller ids.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use tokenizers as hf;
use tokenizers::PreTokenizer as _;

use super::{Numbers, refused};
use crate::error::DatasetError;

type Pair = (u32, u32);

/// A pair must occur this often to be worth a token.
const LEAST_COUNT: u64 = 2;

/// How often each word occurs in `texts`, cut by the rules of `splitter`; words are in the byte
/// alphabet. Reserved tokens are no words.
pub(super) fn count_words<'a>(
    splitter: &hf::Tokenizer,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<String, u64>, DatasetError> {
    let mut words = BTreeMap::new();
    for text in texts {
        let mut pieces = splitter
            .get_added_vocabulary()
            .extract_and_normalize(splitter.get_normalizer(), text);
        if let Some(rules) = splitter.get_pre_tokenizer() {
            rules.pre_tokenize(&mut pieces).map_err(refused)?;
        }
        let pieces = pieces.get_splits(hf::OffsetReferential::Normalized, hf::OffsetType::None);
        for (word, _, reserved) in pieces {
            if reserved.is_some() {
                continue;
            }
            match words.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    words.insert(word.to_owned(), 1);
                }
            }
        }
    }
    Ok(words)
}

/// The vocabulary: `reserved`, the 256 bytes by their character's code point, then merges, the
/// commonest pair first, until there are `vocab_size` tokens or no pair occurs twice.
///
/// Under [`Numbers::Whole`] a number takes its place among the merges by how often it occurs, before
/// a pair as common. It is a token without a merge that makes it, found because the model looks for
/// whole words first (`ignore_merges`); without that token no merge applies to it, and its digits are
/// left.
pub(super) fn train(
    mut words: BTreeMap<String, u64>,
    reserved: &[&str],
    vocab_size: usize,
    numbers: Numbers,
) -> Result<hf::models::bpe::BPE, DatasetError> {
    let alphabet: BTreeSet<char> = hf::pre_tokenizers::byte_level::ByteLevel::alphabet()
        .into_iter()
        .collect();
    let mut tokens: Vec<String> = reserved.iter().map(|token| (*token).to_owned()).collect();
    tokens.extend(alphabet.iter().map(char::to_string));
    if tokens.len() > vocab_size {
        return Err(DatasetError::Config(format!(
            "a byte-pair vocabulary needs at least {} tokens (reserved tokens and 256 bytes), but \
             vocab_size is {vocab_size}",
            tokens.len()
        )));
    }
    let mut ids: BTreeMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut whole = match numbers {
        Numbers::Whole => take_numbers(&mut words),
        Numbers::Digits | Numbers::Merged => Vec::new(),
    };
    let mut counts = Counts::new(&words, &ids)?;
    let mut merges = Vec::new();
    while tokens.len() < vocab_size {
        let pair = counts.commonest();
        let pair_count = pair.map_or(0, |(_, count)| count);
        if let Some((count, number)) = whole.pop_if(|(count, _)| *count >= pair_count) {
            if count < LEAST_COUNT {
                break;
            }
            ids.insert(number.clone(), tokens.len() as u32);
            tokens.push(number);
            continue;
        }
        let Some((pair, count)) = pair else {
            break;
        };
        if count < LEAST_COUNT {
            break;
        }
        let (left, right) = (&tokens[pair.0 as usize], &tokens[pair.1 as usize]);
        let merged = [left.as_str(), right].concat();
        merges.push((left.clone(), right.clone()));
        // Two ways to merge can spell the same token; they share its id.
        let id = match ids.get(&merged) {
            Some(id) => *id,
            None => {
                let id = tokens.len() as u32;
                ids.insert(merged.clone(), id);
                tokens.push(merged);
                id
            }
        };
        counts.merge(pair, id);
    }
    hf::models::bpe::BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<hf::models::bpe::Vocab>(), merges)
        .ignore_merges(numbers == Numbers::Whole)
        .build()
        .map_err(refused)
}

/// Takes the numbers out of `words`: those of two characters or more with their counts, the commonest
/// last, of equally common ones the first in byte order last.
fn take_numbers(words: &mut BTreeMap<String, u64>) -> Vec<(u64, String)> {
    let is_number = |word: &str| word.starts_with(|first: char| first.is_ascii_digit());
    let mut numbers: Vec<(u64, String)> = words
        .extract_if(.., |word, _| is_number(word))
        .filter(|(word, _)| word.len() > 1)
        .map(|(word, count)| (count, word))
        .collect();
    numbers.sort_unstable_by(|(count, word), (other_count, other_word)| {
        count.cmp(other_count).then_with(|| other_word.cmp(word))
    });
    numbers
}

/// The training words as they stand, with the number of occurrences of each neighbouring pair kept
/// up to date.
struct Counts {
    words: Vec<(Vec<u32>, u64)>,
    pairs: BTreeMap<Pair, Occurrences>,
    queue: BTreeSet<(Reverse<u64>, Pair)>,
}

#[derive(Default)]
struct Occurrences {
    count: u64,
    words: BTreeSet<usize>,
}

impl Counts {
    fn new(
        words: &BTreeMap<String, u64>,
        ids: &BTreeMap<String, u32>,
    ) -> Result<Self, DatasetError> {
        let mut counts = Self {
            words: Vec::with_capacity(words.len()),
            pairs: BTreeMap::new(),
            queue: BTreeSet::new(),
        };
        let mut buffer = [0u8; 4];
        for (word, count) in words {
            let mut symbols = Vec::with_capacity(word.len());
            for character in word.chars() {
                let id = ids.get(&*character.encode_utf8(&mut buffer));
                symbols.push(*id.ok_or_else(|| {
                    DatasetError::Tokenizer(format!("{character:?} is not in the byte alphabet"))
                })?);
            }
            counts.words.push((symbols, *count));
        }
        for word in 0..counts.words.len() {
            counts.add(word);
        }
        Ok(counts)
    }

    fn commonest(&self) -> Option<(Pair, u64)> {
        let (Reverse(count), pair) = self.queue.first()?;
        Some((*pair, *count))
    }

    /// Replaces `pair` by `id` from left to right in every word that has it.
    fn merge(&mut self, pair: Pair, id: u32) {
        let affected = match self.pairs.get(&pair) {
            Some(occurrences) => occurrences.words.clone(),
            None => return,
        };
        for word in affected {
            self.remove(word);
            let symbols = &mut self.words[word].0;
            let mut kept = 0;
            let mut next = 0;
            while next < symbols.len() {
                let matches = symbols[next] == pair.0 && symbols.get(next + 1) == Some(&pair.1);
                symbols[kept] = if matches { id } else { symbols[next] };
                kept += 1;
                next += if matches { 2 } else { 1 };
            }
            symbols.truncate(kept);
            self.add(word);
        }
    }

    fn add(&mut self, word: usize) {
        self.update(word, |occurrences, count| {
            occurrences.count += count;
            occurrences.words.insert(word);
        });
    }

    fn remove(&mut self, word: usize) {
        self.update(word, |occurrences, count| {
            occurrences.count -= count;
            occurrences.words.remove(&word);
        });
    }

    fn update(&mut self, word: usize, change: impl Fn(&mut Occurrences, u64)) {
        let (symbols, count) = &self.words[word];
        for window in symbols.windows(2) {
            let pair = (window[0], window[1]);
            let occurrences = self.pairs.entry(pair).or_default();
            self.queue.remove(&(Reverse(occurrences.count), pair));
            change(occurrences, *count);
            if occurrences.count > 0 {
                self.queue.insert((Reverse(occurrences.count), pair));
            } else {
                self.pairs.remove(&pair);
            }
        }
    }
}
