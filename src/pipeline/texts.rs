//! The cache of text features.

use std::collections::VecDeque;

use crate::{
    models::unet::TextFeatures,
    prompt::PromptSyntax,
    sync::{Clock, Monitor},
};

/// A text as the text encoders get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The text for the first text encoder.
    pub first: String,
    /// The text for all others.
    pub others: String,
    /// The number of layers at the end of each text encoder that are left out.
    pub skip: usize,
    /// How the text is read.
    pub syntax: PromptSyntax,
    /// The number of chunks that the text is filled up to.
    pub chunks: usize,
}

impl Text {
    /// A text; without one for the other encoders, or with an empty one, they all get the first, as in the reference.
    pub fn new(first: &str, others: Option<&str>, skip: usize) -> Self {
        let others = others.filter(|text| !text.is_empty()).unwrap_or(first);
        let (first, others) = (first.to_owned(), others.to_owned());
        Self { first, others, skip, syntax: PromptSyntax::default(), chunks: 1 }
    }

    /// The text for the text encoder with this index.
    pub fn of(&self, encoder: usize) -> &str {
        if encoder == 0 { &self.first } else { &self.others }
    }
}

/// The features of the texts that were used last, on the host. They depend only on the text, so any replica whose text
/// encoders have the same numerics classes may use them. Each text is encoded once: a request that needs a text that is
/// being encoded waits for it.
pub struct TextCache {
    state: Monitor<Texts>,
    most: usize,
}

#[derive(Default)]
struct Texts {
    /// Texts with their features, the one that was used last first.
    known: VecDeque<(Text, TextFeatures)>,
    /// Texts that are being encoded, each with its number and the arrival of the request that encodes it.
    begun: Vec<(Text, u64, u64)>,
    turns: u64,
}

/// The result of a lookup in the cache.
pub(super) enum Known<'a> {
    Features(TextFeatures),
    /// There are no features: the caller encodes the text, and others wait until this value is dropped.
    Begun(Turn<'a>),
}

pub(super) struct Turn<'a> {
    texts: &'a TextCache,
    number: u64,
}

impl Default for TextCache {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl TextCache {
    /// An empty cache.
    pub fn new(clock: Clock) -> Self {
        Self { state: Monitor::new(Texts::default(), clock), most: 64 }
    }

    pub(super) fn get_or_begin(&self, text: &Text, arrival: u64) -> Known<'_> {
        self.state.wait_until(|texts| {
            if let Some(i) = texts.known.iter().position(|(known, _)| known == text) {
                let entry = texts.known.remove(i)?;
                let features = entry.1.clone();
                texts.known.push_front(entry);
                return Some(Known::Features(features));
            }
            if texts.begun.iter().any(|(begun, ..)| begun == text) {
                return None;
            }
            texts.turns += 1;
            texts.begun.push((text.clone(), texts.turns, arrival));
            Some(Known::Begun(Turn { texts: self, number: texts.turns }))
        })
    }

    pub(super) fn put(&self, text: &Text, features: TextFeatures) {
        self.state.update(|texts| {
            texts.known.push_front((text.clone(), features));
            texts.known.truncate(self.most);
        });
    }

    /// Ends the waits of other requests for the texts that this request was encoding: it will not finish.
    pub fn give_up(&self, arrival: u64) {
        self.state.update(|texts| texts.begun.retain(|(_, _, other)| *other != arrival));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.texts.state.update(|texts| texts.begun.retain(|(_, number, _)| *number != self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::models::clip::EncodedText;

    fn features() -> TextFeatures {
        TextFeatures::from([EncodedText { features: vec![1.0], pooled: Vec::new() }])
    }

    #[test]
    fn texts_differ_by_what_any_encoder_gets() {
        let text = Text::new("a", Some("b"), 0);
        assert_eq!([text.of(0), text.of(1)], ["a", "b"]);
        assert_eq!(Text::new("a", Some(""), 0), Text::new("a", None, 0));
        assert_ne!(Text::new("a", None, 0), Text::new("a", None, 1));
    }

    #[test]
    fn a_text_is_made_once_and_a_request_that_hangs_holds_up_nobody() {
        let texts = TextCache::default();
        let text = |text: &str| Text::new(text, None, 0);
        let begin = |name: &str, arrival| match texts.get_or_begin(&text(name), arrival) {
            Known::Begun(turn) => turn,
            Known::Features(_) => panic!("{name} is not known yet"),
        };
        let first = begin("a fox", 1);
        let _other = begin("a dog", 2);
        thread::scope(|scope| {
            let waits = scope.spawn(|| matches!(texts.get_or_begin(&text("a fox"), 3), Known::Features(_)));
            texts.put(&text("a fox"), features());
            drop(first);
            assert!(waits.join().unwrap());
            let waits = scope.spawn(|| matches!(texts.get_or_begin(&text("a dog"), 3), Known::Begun(_)));
            texts.give_up(2);
            assert!(waits.join().unwrap(), "the third does what the second will not");
        });
    }

    #[test]
    fn the_texts_used_last_are_remembered() {
        let texts = TextCache { most: 2, ..TextCache::default() };
        let text = |text: &str| Text::new(text, None, 0);
        let known = |name: &str| matches!(texts.get_or_begin(&text(name), 0), Known::Features(_));
        for name in ["a", "b"] {
            texts.put(&text(name), features());
        }
        assert!(known("a"));
        texts.put(&text("c"), features());
        assert_eq!(["a", "b", "c"].map(known), [true, false, true]);
    }
}
