//! Tokenizers without learned merges: one character or one byte a token.
//!
//! `CharTokenizer` numbers the sorted set of characters of a text (nanoGPT's
//! manner); `ByteTokenizer` needs no vocabulary at all. Both promise that
//! `decode(encode(text)) == text`. They travel as JSON inside
//! [`Preprocessing`](super::Preprocessing). Neighbours: `text.rs` encodes
//! whole files with them.

use std::collections::{BTreeSet, HashMap};

use entrenar_base::{Error, ErrorKind, Result};
use entrenar_zoo::as_gpt2;
use serde::{Deserialize, Serialize};

/// How text becomes token numbers, and back.
///
/// # Examples
///
/// ```
/// use entrenar_train::data::Tokenizer;
///
/// let tokenizer = Tokenizer::characters_of("hello");
/// assert_eq!(tokenizer.vocabulary_size(), 4); // e h l o
/// let ids = tokenizer.encode("hole").unwrap();
/// assert_eq!(ids, [1, 3, 2, 0]);
/// assert_eq!(tokenizer.decode(&ids).unwrap(), "hole");
/// assert!(tokenizer.encode("help").unwrap_err().to_string().contains("'p'"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Tokenizer {
    /// One token a character of a stored vocabulary.
    Char(CharTokenizer),
    /// One token a byte; 256 tokens, any text.
    Byte(ByteTokenizer),
}

impl Tokenizer {
    /// A character tokenizer over the characters that occur in `text`.
    pub fn characters_of(text: &str) -> Self {
        Self::Char(CharTokenizer::from_texts([text]))
    }

    /// The byte tokenizer.
    pub fn bytes() -> Self {
        Self::Byte(ByteTokenizer {})
    }

    /// How many tokens there are: one more than the greatest number.
    pub fn vocabulary_size(&self) -> usize {
        match self {
            Self::Char(tokenizer) => tokenizer.characters.len(),
            Self::Byte(_) => 256,
        }
    }

    /// The same tokens in the published form of tokenizers, `tokenizer.json`, and the text of the
    /// token that ends a line, where there is one: what stands for an end of text.
    pub(crate) fn published(&self) -> (serde_json::Value, Option<String>) {
        match self {
            Self::Char(tokenizer) => (
                as_gpt2::tokenizer_of_characters(&tokenizer.characters),
                tokenizer.numbers.contains_key(&'\n').then(|| "\n".into()),
            ),
            Self::Byte(_) => (
                as_gpt2::tokenizer_of_bytes(),
                Some(as_gpt2::byte_letter(b'\n').into()),
            ),
        }
    }

    /// The token numbers of `text`.
    ///
    /// # Errors
    ///
    /// A character outside the vocabulary, named with its code point and byte offset.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Char(tokenizer) => tokenizer.encode(text),
            Self::Byte(_) => Ok(text.bytes().map(u32::from).collect()),
        }
    }

    /// The byte offset of the first character that `encode` refuses.
    pub(super) fn first_unknown(&self, text: &str) -> Option<usize> {
        match self {
            Self::Char(tokenizer) => text
                .char_indices()
                .find(|(_, character)| !tokenizer.numbers.contains_key(character))
                .map(|(at, _)| at),
            Self::Byte(_) => None,
        }
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD, since a model may emit any byte.
    ///
    /// # Errors
    ///
    /// A number outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(String::from_utf8(self.decode_bytes(ids)?)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// The UTF-8 bytes of `ids`: what a stream prints, where one token may be a part of a character.
    ///
    /// # Errors
    ///
    /// A number outside the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len());
        let mut buffer = [0; 4];
        for (at, &id) in ids.iter().enumerate() {
            let outside = || {
                Error::new(
                    ErrorKind::Format,
                    format!(
                        "token {id} at position {at} is outside the vocabulary of {} tokens",
                        self.vocabulary_size()
                    ),
                )
            };
            match self {
                Self::Char(tokenizer) => {
                    let character = tokenizer.characters.get(id as usize).ok_or_else(outside)?;
                    bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                }
                Self::Byte(_) => bytes.push(u8::try_from(id).map_err(|_| outside())?),
            }
        }
        Ok(bytes)
    }
}

/// One token a character: the sorted set of characters, numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct CharTokenizer {
    characters: Vec<char>,
    // Derived from `characters`; skipped by `Stored`.
    numbers: HashMap<char, u32>,
}

/// The JSON form: one string of all characters in order.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    characters: String,
}

impl From<CharTokenizer> for Stored {
    fn from(tokenizer: CharTokenizer) -> Self {
        Self {
            characters: tokenizer.characters.into_iter().collect(),
        }
    }
}

impl TryFrom<Stored> for CharTokenizer {
    type Error = entrenar_base::Error;

    fn try_from(stored: Stored) -> Result<Self> {
        let characters: Vec<char> = stored.characters.chars().collect();
        if let Some(pair) = characters.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "the characters of a tokenizer must be sorted and distinct, got {:?} before {:?}",
                    pair[0], pair[1]
                ),
            ));
        }
        Ok(Self::from_sorted(characters))
    }
}

impl CharTokenizer {
    /// The sorted set of all characters of `texts`.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = BTreeSet::new();
        for text in texts {
            // Most characters repeat: a table for ASCII keeps the tree out of the hot path.
            let mut ascii = [false; 128];
            for character in text.chars() {
                if character.is_ascii() {
                    ascii[character as usize] = true;
                } else {
                    set.insert(character);
                }
            }
            set.extend(
                (0u8..128)
                    .filter(|&byte| ascii[usize::from(byte)])
                    .map(char::from),
            );
        }
        Self::from_sorted(set.into_iter().collect())
    }

    fn from_sorted(characters: Vec<char>) -> Self {
        // At most 0x110000 characters exist, so a number always fits u32.
        let numbers = characters.iter().copied().zip(0u32..).collect();
        Self {
            characters,
            numbers,
        }
    }

    /// The characters in the order of their numbers.
    pub fn characters(&self) -> &[char] {
        &self.characters
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        for (offset, character) in text.char_indices() {
            let id = self.numbers.get(&character).ok_or_else(|| {
                Error::new(ErrorKind::Format, format!(
                    "character {character:?} (U+{:04X}) at byte {offset} is not in the vocabulary of {} characters",
                    character as u32,
                    self.characters.len()
                ))
            })?;
            ids.push(*id);
        }
        Ok(ids)
    }
}

/// One token a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByteTokenizer {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_kinds_round_trip(text in "\\PC{0,60}", extra in "\\PC{0,20}") {
            let joined = format!("{text}{extra}");
            for tokenizer in [Tokenizer::characters_of(&joined), Tokenizer::bytes()] {
                let ids = tokenizer.encode(&text).unwrap();
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
                prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.clone());
                let json = serde_json::to_string(&tokenizer).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Tokenizer>(&json).unwrap(), &tokenizer);
            }
        }
    }

    #[test]
    fn the_vocabulary_is_sorted_and_its_json_is_stable() {
        let tokenizer = Tokenizer::characters_of("banana é\n");
        assert_eq!(
            serde_json::to_string(&tokenizer).unwrap(),
            r#"{"type":"char","characters":"\n abné"}"#
        );
        assert_eq!(
            serde_json::to_string(&Tokenizer::bytes()).unwrap(),
            r#"{"type":"byte"}"#
        );
    }

    #[test]
    fn an_unknown_character_is_named_with_its_offset() {
        let error = Tokenizer::characters_of("abé").encode("éaz").unwrap_err();
        assert_eq!(
            error.to_string(),
            "character 'z' (U+007A) at byte 3 is not in the vocabulary of 3 characters"
        );
    }

    #[test]
    fn numbers_outside_the_vocabulary_are_refused() {
        let error = Tokenizer::characters_of("ab").decode(&[0, 2]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "token 2 at position 1 is outside the vocabulary of 2 tokens"
        );
        assert!(Tokenizer::bytes().decode(&[256]).is_err());
    }

    #[test]
    fn broken_json_is_refused() {
        for json in [
            r#"{"type":"char","characters":"ba"}"#,
            r#"{"type":"char","characters":"aa"}"#,
            r#"{"type":"words"}"#,
            r#"{"type":"char"}"#,
        ] {
            assert!(serde_json::from_str::<Tokenizer>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_byte_stream_that_is_no_text_still_decodes() {
        assert_eq!(
            Tokenizer::bytes().decode(&[0xff, 0x61]).unwrap(),
            "\u{fffd}a"
        );
    }
}
