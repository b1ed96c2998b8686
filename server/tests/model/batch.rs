//! Many texts in one run, which is for GPUs, on the processor: the vectors are those of one text a run.

use flashbulb::embed::{Embedder, Precision, Tokens};

use super::support::{cosine, embedder};

/// Embeds `texts` together and one by one; no number may differ by more than `most`.
pub fn is_as_one_by_one(embedder: &Embedder, texts: &[&str], most: f32) {
    let (mut one, mut many) = (embedder.session().unwrap(), embedder.batch_session().unwrap());
    let windows: Vec<Tokens> =
        texts.iter().flat_map(|text| embedder.document_windows(text).unwrap()).collect();
    let together = many.embed_batch(&windows).unwrap();
    assert_eq!(together.len(), windows.len());
    for (window, together) in windows.iter().zip(&together) {
        let alone = one.embed(window).unwrap();
        let apart = alone.iter().zip(together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart <= most, "{} tokens: {apart}", window.len());
        assert!(cosine(&alone, together) > 0.99999, "{} tokens", window.len());
    }
}

#[test]
fn texts_of_many_lengths_keep_their_vectors_in_a_batch() {
    let embedder = embedder(Precision::F32);
    let long =
        "the orchard beyond the mill has forty trees and each of them has a name ".repeat(30);
    let texts = [
        "a cat",
        "a dog",
        "the harbour was frozen",
        "where is the key",
        "who has the key",
        "we counted eleven boats before noon",
        "my sister plays the accordion on Sundays",
        &long,
        "x",
        "y",
    ];
    is_as_one_by_one(&embedder, &texts, 1e-5);
    let none = embedder.batch_session().unwrap().embed_batch(&[]).unwrap();
    assert!(none.is_empty());
    // Without a mask equal lengths share a run.
    let windows = texts.map(|text| embedder.document_windows(text).unwrap().remove(0));
    let mut plain = embedder.session().unwrap();
    for (window, together) in windows.iter().zip(plain.embed_batch(&windows).unwrap()) {
        assert!(cosine(&plain.embed(window).unwrap(), &together) > 0.99999);
    }
}

/// Their vectors would depend on who is in the batch, and our operator takes one text.
#[test]
fn bytes_are_not_batched() {
    let embedder = embedder(Precision::Int8);
    assert!(!embedder.batches());
    let windows = embedder.document_windows("one").unwrap();
    let error = embedder.batch_session().unwrap().embed_batch(&windows).unwrap_err();
    assert!(error.to_string().contains("one text at a time"), "{error}");
}
