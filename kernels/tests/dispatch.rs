//! Which level is chosen, how levels are named, and what every level refuses.

#![allow(clippy::unwrap_used, missing_docs)]

use flashbulb_kernels::{Kernels, MAX_I8_LEN, SimdLevel, available_levels};

#[test]
fn the_best_available_level_is_detected() {
    let levels = available_levels();
    eprintln!("levels here: {levels:?}");
    assert_eq!(levels.first(), Some(&SimdLevel::Scalar));
    assert_eq!(levels.last(), Some(&Kernels::detect().level()));
    assert_eq!(Kernels::detect(), Kernels::detect());
}

#[test]
fn kernels_exist_exactly_for_available_levels() {
    for level in SimdLevel::ALL {
        let available = available_levels().contains(&level);
        assert_eq!(Kernels::with_level(level).map(|k| k.level()), available.then_some(level));
    }
}

#[test]
fn levels_have_their_public_names() {
    let names = SimdLevel::ALL.map(|level| level.to_string());
    assert_eq!(names, ["scalar", "neon", "avx2", "avx512-vnni", "amx-int8"]);
    assert_eq!(format!("[{:>6}]", SimdLevel::Avx2), "[  avx2]");
}

#[test]
#[should_panic(expected = "different lengths")]
fn f32_products_of_different_lengths_panic() {
    Kernels::detect().dot_f32(&[1.0; 8], &[1.0; 9]);
}

#[test]
#[should_panic(expected = "MAX_I8_LEN")]
fn codes_that_could_overflow_panic() {
    let codes = vec![1; MAX_I8_LEN + 1];
    Kernels::detect().dot_i8(&codes, &codes);
}

#[test]
#[should_panic(expected = "rows and out do not agree")]
fn rows_of_the_wrong_length_panic() {
    Kernels::detect().dot_i8_rows(&[1; 4], &[1; 11], &mut [0; 3]);
}

#[test]
#[should_panic(expected = "different lengths")]
fn quantising_into_the_wrong_length_panics() {
    Kernels::detect().quantize_i8(&[1.0; 4], &mut [0; 3]);
}

#[test]
#[should_panic(expected = "different lengths")]
fn one_short_row_of_four_panics() {
    Kernels::detect().dot_i8_x4(&[1; 20], [&[1; 20], &[1; 20], &[1; 20], &[1; 19]]);
}
