//! From a prompt to the input of a text encoder: chunks of token ids, and the weight of each token.

use std::sync::Arc;

use super::{
    PromptSyntax,
    a1111::{self, Piece},
};
use crate::{
    error::{Error, Result},
    tokenizer::Tokenizer,
};

/// The most tokens behind the last comma of a full chunk, the comma included, that move to the next chunk.
const COMMA_BACKTRACK: usize = 20;
/// The most chunks of a prompt: 2,400 tokens of CLIP.
const MOST_CHUNKS: usize = 32;

/// One input of a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// The start token, tokens, the end token and padding: as many ids as the text encoder takes.
    pub ids: Vec<u32>,
    /// The weight of each of them; 1 for the start, the end and padding.
    pub weights: Vec<f32>,
    /// The position of the end token, where pooled features are taken. `None` leaves it to the text encoder, whose rule
    /// may take the largest id, and so that of an embedding: see
    /// [`PooledSpec::end_token`](crate::models::clip::PooledSpec::end_token). diffusers does this; web UIs do not.
    pub end: Option<usize>,
}

/// A prompt in the form of one text encoder's input.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedPrompt {
    /// One chunk or several. Each is encoded by itself; their features follow each other along the tokens,
    /// `[chunks * tokens, width]`. Pooled features are those of the first chunk, without weights.
    pub chunks: Vec<Chunk>,
    /// The end of a plain prompt that did not fit.
    pub truncated: Option<String>,
}

/// Turns prompts into the input of one text encoder.
#[derive(Debug)]
pub struct PromptTokenizer {
    /// With plain syntax it has a token for each vector of the embeddings.
    tokenizer: Arc<Tokenizer>,
    syntax: PromptSyntax,
    /// The id of the first vector.
    first_id: u32,
    /// With the syntax of web UIs, the embeddings whose names have the most tokens first.
    names: Vec<Name>,
}

/// The name of an embedding.
#[derive(Debug)]
struct Name {
    name: String,
    tokens: Vec<u32>,
    /// The ids of the vectors.
    vectors: std::ops::Range<u32>,
}

impl PromptTokenizer {
    /// For prompts of this syntax, with these embeddings (textual inversions): the name of each, and how many vectors
    /// it has for this text encoder.
    ///
    /// The vectors get ids in the order of the list, from [`PromptTokenizer::first_id`] on. In plain prompts each is a
    /// token, as in diffusers' `load_textual_inversion`: `name`, `name_1`, `name_2` and so on, and `name` stands for
    /// all of them if it has no capital letters. In web UIs' prompts a name is found by its tokens, and the longest
    /// name counts.
    ///
    /// # Errors
    /// If a name is empty, comes twice, or is a token already, or if an embedding has no vectors or more than a chunk.
    pub fn new(tokenizer: &Arc<Tokenizer>, syntax: PromptSyntax, embeddings: &[(&str, usize)]) -> Result<Self> {
        let room = tokenizer.max_length() - 2;
        let first_id = tokenizer.largest_id() + 1;
        let mut next = first_id;
        let mut names: Vec<Name> = Vec::new();
        for (name, vectors) in embeddings {
            let refuse = |what: String| Error::input(format!("the embedding {name:?}: {what}"));
            if !(1..=room).contains(vectors) {
                return Err(refuse(format!("a prompt has room for 1 to {room} vectors")).found(vectors.to_string()));
            }
            let tokens = tokenizer.ids(name)?;
            if tokens.is_empty() {
                return Err(refuse("a name is wanted".into()).hint("--embedding FILE:NAME"));
            }
            if let Some(other) = names.iter().find(|other| other.name == *name) {
                return Err(refuse("two embeddings have this name".into()).found(format!("{:?}", other.name)));
            }
            let ids = next..next + *vectors as u32;
            next = ids.end;
            names.push(Name { name: (*name).to_owned(), tokens, vectors: ids });
        }
        let tokenizer = match syntax {
            PromptSyntax::Plain if names.is_empty() => tokenizer.clone(),
            PromptSyntax::Plain => {
                Arc::new(tokenizer.with_tokens(&names.iter().flat_map(Name::tokens).collect::<Vec<_>>())?)
            }
            PromptSyntax::A1111 => {
                names.sort_by(|a, b| (b.tokens.len(), &b.tokens).cmp(&(a.tokens.len(), &a.tokens)));
                let same = |pair: &&[Name]| pair[0].tokens == pair[1].tokens;
                if let Some([one, other]) = names.windows(2).find(same) {
                    let what = format!("the embeddings {:?} and {:?} have the same name", one.name, other.name);
                    return Err(Error::input(what).hint("--embedding FILE:NAME gives one of them another name"));
                }
                tokenizer.clone()
            }
        };
        Ok(Self { tokenizer, syntax, first_id, names })
    }

    /// The id of the first vector of the embeddings: the rows of the text encoder's token embedding from this one on
    /// are the vectors.
    pub fn first_id(&self) -> u32 {
        self.first_id
    }

    /// Converts a prompt, or a negative prompt, without tags. A plain prompt is one chunk, and what does not fit is cut
    /// off. Other prompts have as many chunks as they need: 32 at most.
    ///
    /// # Errors
    /// If the syntax is invalid, or if there are too many chunks.
    pub fn encode(&self, text: &str) -> Result<TokenizedPrompt> {
        if self.syntax == PromptSyntax::Plain {
            let encoded = self.tokenizer.encode(text)?;
            let weights = vec![1.0; encoded.ids.len()];
            return Ok(TokenizedPrompt {
                chunks: vec![Chunk { ids: encoded.ids, weights, end: None }],
                truncated: encoded.truncated,
            });
        }
        a1111::check(text)?;
        let mut chunks = Chunks::new(&self.tokenizer);
        for piece in a1111::pieces(text)? {
            match piece {
                Piece::Break => chunks.close()?,
                Piece::Text(text, weight) => {
                    let tokens = self.tokenizer.ids(&text)?;
                    let mut rest = &tokens[..];
                    while let Some((first, others)) = rest.split_first() {
                        match self.names.iter().find(|name| rest.starts_with(&name.tokens)) {
                            None => {
                                chunks.push(&[*first], weight as f32)?;
                                rest = others;
                            }
                            Some(name) => {
                                chunks.push(&name.vectors.clone().collect::<Vec<_>>(), weight as f32)?;
                                rest = &rest[name.tokens.len()..];
                            }
                        }
                    }
                }
            }
        }
        Ok(TokenizedPrompt { chunks: chunks.finish()?, truncated: None })
    }

    /// Adds empty chunks, which are encoded like any other, until there are `chunks` of them: prompt and negative
    /// prompt can run as one batch if both have the same number. The web UI does the same if its option "Pad
    /// prompt/negative prompt" is on, and otherwise calls the UNet for each by itself, which gives slightly other
    /// pictures.
    pub fn pad(&self, prompt: &mut TokenizedPrompt, chunks: usize) {
        while prompt.chunks.len() < chunks {
            prompt.chunks.push(chunk(&self.tokenizer, Vec::new(), Vec::new()));
        }
    }
}

impl Name {
    /// The token of each vector in plain prompts.
    fn tokens(&self) -> impl Iterator<Item = String> + '_ {
        let further = (1..self.vectors.len()).map(|i| format!("{}_{i}", self.name));
        std::iter::once(self.name.clone()).chain(further)
    }
}

/// Chunks that are being filled.
struct Chunks<'a> {
    tokenizer: &'a Tokenizer,
    /// The most tokens of a chunk.
    room: usize,
    comma: Option<u32>,
    full: Vec<Chunk>,
    ids: Vec<u32>,
    weights: Vec<f32>,
    /// The position of the last comma in the chunk that is being filled. A comma that begins it does not count.
    last_comma: Option<usize>,
}

impl<'a> Chunks<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        let (room, comma) = (tokenizer.max_length() - 2, tokenizer.id_of(",</w>"));
        Self { tokenizer, room, comma, full: Vec::new(), ids: Vec::new(), weights: Vec::new(), last_comma: None }
    }

    /// Adds one token, or the vectors of an embedding, which stay together.
    fn push(&mut self, ids: &[u32], weight: f32) -> Result<()> {
        let is_full = self.ids.len() == self.room;
        if self.comma.is_some_and(|comma| ids == [comma]) {
            self.last_comma = Some(self.ids.len());
        } else if let Some(comma) = self.last_comma.filter(|comma| is_full && self.room - comma <= COMMA_BACKTRACK) {
            let (ids, weights) = (self.ids.split_off(comma + 1), self.weights.split_off(comma + 1));
            self.close()?;
            (self.ids, self.weights) = (ids, weights);
        }
        if self.ids.len() == self.room || self.ids.len() + ids.len() > self.room {
            self.close()?;
        }
        self.ids.extend_from_slice(ids);
        self.weights.extend(ids.iter().map(|_| weight));
        Ok(())
    }

    /// Begins the next chunk.
    fn close(&mut self) -> Result<()> {
        if self.full.len() == MOST_CHUNKS {
            return Err(Error::input(format!("a prompt may have {MOST_CHUNKS} chunks of {} tokens", self.room))
                .hint("a shorter prompt, or fewer BREAKs"));
        }
        let (ids, weights) = (std::mem::take(&mut self.ids), std::mem::take(&mut self.weights));
        self.full.push(chunk(self.tokenizer, ids, weights));
        self.last_comma = None;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Chunk>> {
        if !self.ids.is_empty() || self.full.is_empty() {
            self.close()?;
        }
        Ok(self.full)
    }
}

/// A chunk of these tokens. All ids behind the first end token are padding, even if a prompt spells an end token out.
fn chunk(tokenizer: &Tokenizer, mut ids: Vec<u32>, mut weights: Vec<f32>) -> Chunk {
    let [begin, end, pad] = [tokenizer.begin(), tokenizer.end(), tokenizer.pad()];
    ids.insert(0, begin);
    weights.insert(0, 1.0);
    weights.resize(tokenizer.max_length(), 1.0);
    let first = ids.iter().position(|id| *id == end);
    match first {
        Some(first) if pad != end => ids.truncate(first + 1),
        Some(_) => {}
        None => ids.push(end),
    }
    let end = first.unwrap_or(ids.len() - 1);
    ids.resize(tokenizer.max_length(), pad);
    Chunk { ids, weights, end: Some(end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::files;

    const BEGIN: u32 = 12;
    const END: u32 = 13;
    const COMMA: u32 = 1;
    const CAT: u32 = 11;

    /// A tokenizer that knows the letters of "cat", ",", "!" and the words "at" and "cat".
    fn tokenizer(pad: &str, length: usize) -> Arc<Tokenizer> {
        let tokens = ["!", ",</w>", ",", "c", "a", "t", "c</w>", "a</w>", "t</w>", "!</w>", "at</w>", "cat</w>"];
        let tokens = tokens.into_iter().chain(["<|startoftext|>", "<|endoftext|>"]).enumerate();
        let entries: Vec<String> = tokens.map(|(id, token)| format!("\"{token}\": {id}")).collect();
        let list = [
            ("vocab.json", format!("{{{}}}", entries.join(", "))),
            ("merges.txt", "#version: 0.2\na t</w>\nc at</w>\n".to_owned()),
            ("special_tokens_map.json", format!("{{\"pad_token\": \"{pad}\"}}")),
        ];
        Arc::new(Tokenizer::load(&files(&list), "tokenizer", length).unwrap())
    }

    fn a1111(pad: &str, length: usize, embeddings: &[(&str, usize)]) -> PromptTokenizer {
        PromptTokenizer::new(&tokenizer(pad, length), PromptSyntax::A1111, embeddings).unwrap()
    }

    /// The tokens of each chunk, without start, end and padding.
    fn tokens(prompt: &TokenizedPrompt) -> Vec<Vec<u32>> {
        let inside = |chunk: &Chunk| {
            assert_eq!((chunk.ids.len(), chunk.ids[0]), (chunk.weights.len(), BEGIN));
            let end = chunk.ids.iter().position(|id| *id == END).unwrap();
            assert!(chunk.ids[end..].iter().all(|id| *id == END), "{:?}", chunk.ids);
            chunk.ids[1..end].to_vec()
        };
        prompt.chunks.iter().map(inside).collect()
    }

    #[test]
    fn texts_are_divided_into_chunks_as_the_web_ui_divides_them() {
        let words = |before: usize, after: usize| format!("{}, {}", "cat ".repeat(before), "cat ".repeat(after));
        let tokenizer = a1111("<|endoftext|>", 77, &[]);
        for (text, lengths) in [
            ("cat ".repeat(75), &[75][..]),
            (words(60, 24), &[61, 24]),
            (words(50, 34), &[75, 10]),
            (words(55, 21), &[56, 21]),
            (words(54, 22), &[75, 2]),
            (words(74, 2), &[75, 2]),
            (words(75, 2), &[75, 3]),
            ("cat cat BREAK cat".into(), &[2, 1]),
            ("BREAK cat".into(), &[0, 1]),
            ("cat BREAK".into(), &[1]),
            (String::new(), &[0]),
            ("(cat BREAK cat:1.2)".into(), &[1, 1]),
            // The comma that begins a chunk does not count, and neither does one of the chunk before.
            (format!("{}, {}", "cat ".repeat(75), "cat ".repeat(80)), &[75, 75, 6]),
        ] {
            let prompt = tokenizer.encode(&text).unwrap();
            let got: Vec<usize> = tokens(&prompt).iter().map(Vec::len).collect();
            assert_eq!((&got[..], prompt.truncated), (lengths, None), "{text}");
            assert!(prompt.chunks.iter().all(|chunk| chunk.ids.len() == 77));
        }
        assert_eq!(tokens(&tokenizer.encode(&words(75, 2)).unwrap())[1], [COMMA, CAT, CAT]);
    }

    #[test]
    fn each_token_has_the_weight_of_its_piece() {
        let prompt = a1111("<|endoftext|>", 8, &[]).encode("cat (cat, [!]:1.5)!").unwrap();
        let Chunk { ids, weights, end } = &prompt.chunks[0];
        assert_eq!((&ids[..], *end), (&[BEGIN, CAT, CAT, COMMA, 9, 9, END, END][..], Some(6)));
        assert_eq!(weights, &[1.0, 1.0, 1.5, 1.5, (1.5 / 1.1) as f32, 1.0, 1.0, 1.0]);
        let moved = a1111("<|endoftext|>", 6, &[]).encode("cat, (cat cat:2) cat").unwrap();
        assert_eq!(tokens(&moved), [&[CAT, COMMA][..], &[CAT, CAT, CAT]]);
        assert_eq!(moved.chunks[1].weights, [1.0, 2.0, 2.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn padding_is_the_models_and_begins_at_the_first_end_token() {
        let tokenizer = a1111("!", 6, &[]);
        let ids = |text: &str| tokenizer.encode(text).unwrap().chunks.remove(0).ids;
        assert_eq!(ids("cat"), [BEGIN, CAT, END, 0, 0, 0]);
        assert_eq!(ids("cat cat cat cat"), [BEGIN, CAT, CAT, CAT, CAT, END]);
        assert_eq!(ids("cat <|endoftext|> cat"), [BEGIN, CAT, END, 0, 0, 0]);
        let tokenizer = a1111("<|endoftext|>", 6, &[]);
        assert_eq!(tokenizer.encode("cat <|endoftext|> cat").unwrap().chunks[0].ids, [BEGIN, CAT, END, CAT, END, END]);
    }

    #[test]
    fn an_embedding_is_found_by_its_tokens_and_stays_in_one_chunk() {
        let tokenizer = a1111("<|endoftext|>", 8, &[("cat cat", 2), ("CAT!", 5), ("at", 1)]);
        assert_eq!(tokenizer.first_id(), 14);
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        assert_eq!(tokens(&encode("cat (Cat CAT:1.5) at")), [[CAT, 14, 15, 21]]);
        assert_eq!(encode("cat (Cat CAT:1.5) at").chunks[0].weights[..5], [1.0, 1.0, 1.5, 1.5, 1.0]);
        assert_eq!(tokens(&encode("cat cat cat!")), [&[14, 15][..], &[16, 17, 18, 19, 20]]);
        assert_eq!(tokens(&encode("cat, cat! cat")), [&[CAT, COMMA][..], &[16, 17, 18, 19, 20, CAT]]);
        // What moves behind a comma moves with its vectors.
        assert_eq!(tokens(&encode(",cat cat c c c c")), [&[COMMA][..], &[14, 15, 6, 6, 6, 6]]);
    }

    #[test]
    fn an_embedding_that_fills_a_chunk_fits() {
        let tokenizer = a1111("<|endoftext|>", 77, &[("cat", 75)]);
        let lengths = |text: &str| tokens(&tokenizer.encode(text).unwrap()).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!((lengths("cat"), lengths("c cat c")), (vec![75], vec![1, 75, 1]));
    }

    #[test]
    fn plain_embeddings_are_tokens() {
        let embeddings = [("<cat-toy>", 3), ("dog", 1)];
        let plain = PromptTokenizer::new(&tokenizer("!", 8), PromptSyntax::Plain, &embeddings).unwrap();
        assert_eq!(plain.first_id(), 14);
        let encode = |text: &str| plain.encode(text).unwrap();
        assert_eq!(encode("a <cat-toy> dog").chunks[0].ids, [BEGIN, 7, 14, 15, 16, 17, END, 0]);
        assert_eq!(encode("(cat:2)").chunks[0].weights, [1.0; 8]);
        assert_eq!(encode("cat cat cat cat cat cat CAT").truncated.as_deref(), Some("CAT"));
    }

    #[test]
    fn embeddings_that_cannot_be_used_are_errors() {
        let refuse = |syntax, embeddings: &[(&str, usize)]| {
            let error = PromptTokenizer::new(&tokenizer("!", 8), syntax, embeddings).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        use PromptSyntax::{A1111, Plain};
        for (syntax, embeddings, says) in [
            (Plain, &[("x", 0)][..], "the embedding \"x\": a prompt has room for 1 to 6 vectors\n  found: 0"),
            (A1111, &[("x", 7)], "found: 7"),
            (Plain, &[(" ", 1)], "a name is wanted"),
            (Plain, &[("at</w>", 1)], "has this token already"),
            (Plain, &[("<x>", 1), ("<x>", 1)], "two embeddings have this name"),
            (Plain, &[("<x>", 2), ("<x>_1", 1)], "cannot be added"),
            (A1111, &[("cat", 1), ("at", 1), ("CAT", 1)], "\"CAT\" have the same name"),
        ] {
            let error = refuse(syntax, embeddings);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_number_of_chunks_is_limited_and_can_be_filled_up() {
        let tokenizer = a1111("!", 6, &[]);
        assert_eq!(tokenizer.encode(&"cat ".repeat(4 * 32)).unwrap().chunks.len(), 32);
        for text in ["cat ".repeat(4 * 32 + 1), "BREAK ".repeat(40)] {
            let error = tokenizer.encode(&text).unwrap_err().to_string();
            assert!(error.contains("a prompt may have 32 chunks of 4 tokens"), "{error}");
        }
        let mut prompt = tokenizer.encode("cat").unwrap();
        tokenizer.pad(&mut prompt, 3);
        assert_eq!(prompt.chunks.len(), 3);
        assert_eq!(prompt.chunks[2], tokenizer.encode("").unwrap().chunks[0]);
        tokenizer.pad(&mut prompt, 2);
        assert_eq!(prompt.chunks.len(), 3);
    }
}
