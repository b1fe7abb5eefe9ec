//! The cache of text features.

use std::collections::VecDeque;

use crate::{
    models::unet::TextFeatures,
    sync::{Clock, Monitor},
};

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
    known: VecDeque<(String, TextFeatures)>,
    /// Texts that are being encoded, each with its number and the arrival of the request that encodes it.
    begun: Vec<(String, u64, u64)>,
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

    pub(super) fn get_or_begin(&self, text: &str, arrival: u64) -> Known<'_> {
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
            texts.begun.push((text.to_string(), texts.turns, arrival));
            Some(Known::Begun(Turn { texts: self, number: texts.turns }))
        })
    }

    pub(super) fn put(&self, text: &str, features: TextFeatures) {
        self.state.update(|texts| {
            texts.known.push_front((text.to_string(), features));
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

    #[test]
    fn a_text_is_made_once_and_a_request_that_hangs_holds_up_nobody() {
        let texts = TextCache::default();
        let begin = |text, arrival| match texts.get_or_begin(text, arrival) {
            Known::Begun(turn) => turn,
            Known::Features(_) => panic!("{text} is not known yet"),
        };
        let first = begin("a fox", 1);
        let _other = begin("a dog", 2);
        thread::scope(|scope| {
            let waits = scope.spawn(|| matches!(texts.get_or_begin("a fox", 3), Known::Features(_)));
            texts.put("a fox", TextFeatures::from([vec![1.0]]));
            drop(first);
            assert!(waits.join().unwrap());
            let waits = scope.spawn(|| matches!(texts.get_or_begin("a dog", 3), Known::Begun(_)));
            texts.give_up(2);
            assert!(waits.join().unwrap(), "the third does what the second will not");
        });
    }

    #[test]
    fn the_texts_used_last_are_remembered() {
        let texts = TextCache { most: 2, ..TextCache::default() };
        let known = |text| matches!(texts.get_or_begin(text, 0), Known::Features(_));
        for text in ["a", "b"] {
            texts.put(text, TextFeatures::from([vec![1.0]]));
        }
        assert!(known("a"));
        texts.put("c", TextFeatures::from([vec![1.0]]));
        assert_eq!(["a", "b", "c"].map(known), [true, false, true]);
    }
}
