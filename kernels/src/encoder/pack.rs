//! A layer's weights in the order in which the kernels read them: one block of bytes and one of floats.
//!
//! Invariant: [`pack`] and [`Layer::new`] walk the parts in the same order, [`Part`]'s; what one writes the other finds.

use std::fmt;

use super::linear::{GROUP, INPUT_BLOCK, Linear, PANEL};
use super::{LayerShape, PAIR_MAX};

/// A matrix in signed bytes, `value ≈ code · scale`, row-major `[inputs, outputs]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Codes, −127..=127; neighbours of a column that have one sign sum to at most [`PAIR_MAX`].
    pub codes: &'a [i8],
    /// One a column.
    pub scales: &'a [f32],
    /// One a column.
    pub bias: &'a [f32],
}

/// A layer normalisation.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Multiplies.
    pub weight: &'a [f32],
    /// Is added.
    pub bias: &'a [f32],
}

/// The weights of a layer as their maker has them. Repeated input channels are further rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct LayerParts<'a> {
    /// What each input channel is multiplied by before `qkv`.
    pub attention_factors: &'a [f32],
    /// Queries, keys and values side by side: `[hidden + copies, 3 · hidden]`.
    pub qkv: Matrix<'a>,
    /// After attention: `[hidden, hidden]`.
    pub out: Matrix<'a>,
    /// After attention.
    pub attention_norm: Norm<'a>,
    /// What each channel is multiplied by before `widen`.
    pub widen_factors: &'a [f32],
    /// `[hidden + copies, wide]`.
    pub widen: Matrix<'a>,
    /// What each neuron is multiplied by after the activation.
    pub narrow_factors: &'a [f32],
    /// `[wide, hidden]`.
    pub narrow: Matrix<'a>,
    /// At the end.
    pub output_norm: Norm<'a>,
}

/// A packed layer: the two blocks that [`Layer::new`] takes.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// The four matrices.
    pub codes: Vec<i8>,
    /// Everything else.
    pub params: Vec<f32>,
}

/// Weights that are no layer of the stated shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackError(String);

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PackError {}

fn check(what: &str, found: usize, wanted: usize) -> Result<(), PackError> {
    if found == wanted {
        return Ok(());
    }
    Err(PackError(format!("{what} has {found} elements, not {wanted}")))
}

impl LayerShape {
    fn check(&self) -> Result<(), PackError> {
        let Self { hidden, heads, wide, .. } = *self;
        if hidden == 0 || heads == 0 || wide == 0 || !hidden.is_multiple_of(heads) {
            return Err(PackError(format!("{hidden} channels, {heads} heads, {wide} neurons")));
        }
        let copies = self.attention_copies.iter().chain(&self.widen_copies);
        match copies.max() {
            Some(&channel) if channel >= hidden => {
                Err(PackError(format!("channel {channel} of {hidden} is repeated")))
            }
            _ => Ok(()),
        }
    }

    /// Inputs and outputs of the four matrices, in their order.
    fn sizes(&self) -> [(&'static str, usize, usize); 4] {
        let Self { hidden, wide, .. } = *self;
        [
            ("qkv", hidden + self.attention_copies.len(), 3 * hidden),
            ("out", hidden, hidden),
            ("widen", hidden + self.widen_copies.len(), wide),
            ("narrow", wide, hidden),
        ]
    }
}

fn padded_inputs(inputs: usize) -> usize {
    inputs.next_multiple_of(INPUT_BLOCK)
}

fn padded_outputs(outputs: usize) -> usize {
    outputs.next_multiple_of(PANEL)
}

/// Packs a layer.
///
/// # Errors
/// A part has another size than `shape` says, or a matrix breaks the bound on neighbours.
pub fn pack(shape: &LayerShape, parts: &LayerParts<'_>) -> Result<Packed, PackError> {
    shape.check()?;
    let mut packed = Packed::default();
    let [qkv, out, widen, narrow] = shape.sizes();
    packed.floats("attention_factors", parts.attention_factors, shape.hidden, shape.hidden)?;
    packed.matrix(qkv, &parts.qkv, None)?;
    packed.matrix(out, &parts.out, None)?;
    packed.norm(&parts.attention_norm, shape.hidden)?;
    packed.floats("widen_factors", parts.widen_factors, shape.hidden, shape.hidden)?;
    packed.matrix(widen, &parts.widen, None)?;
    // The activations come padded from `widen`.
    let wide = padded_outputs(shape.wide);
    packed.floats("narrow_factors", parts.narrow_factors, shape.wide, wide)?;
    packed.matrix(narrow, &parts.narrow, Some(wide))?;
    packed.norm(&parts.output_norm, shape.hidden)?;
    Ok(packed)
}

impl Packed {
    fn floats(
        &mut self,
        what: &str,
        values: &[f32],
        wanted: usize,
        padded: usize,
    ) -> Result<(), PackError> {
        check(what, values.len(), wanted)?;
        self.params.extend_from_slice(values);
        self.params.extend(std::iter::repeat_n(0.0, padded - wanted));
        Ok(())
    }

    fn norm(&mut self, norm: &Norm<'_>, hidden: usize) -> Result<(), PackError> {
        self.floats("norm weight", norm.weight, hidden, hidden)?;
        self.floats("norm bias", norm.bias, hidden, hidden)
    }

    fn matrix(
        &mut self,
        (what, inputs, outputs): (&str, usize, usize),
        matrix: &Matrix<'_>,
        inputs_padded: Option<usize>,
    ) -> Result<(), PackError> {
        check(what, matrix.codes.len(), inputs * outputs)?;
        check_neighbours(what, matrix.codes, outputs)?;
        let rows = padded_inputs(inputs_padded.unwrap_or(inputs));
        let columns = padded_outputs(outputs);
        let code = |row: usize, column: usize| {
            if row < inputs && column < outputs { matrix.codes[row * outputs + column] } else { 0 }
        };
        for panel in (0..columns).step_by(PANEL) {
            for group in (0..rows).step_by(GROUP) {
                for column in panel..panel + PANEL {
                    self.codes.extend((group..group + GROUP).map(|row| code(row, column)));
                }
            }
        }
        self.floats(what, matrix.scales, outputs, columns)?;
        let sums: Vec<f32> = (0..outputs)
            .map(|column| {
                let sum: i32 = (0..inputs).map(|row| i32::from(code(row, column))).sum();
                (f64::from(sum) * f64::from(matrix.scales[column])) as f32
            })
            .collect();
        self.floats(what, &sums, outputs, columns)?;
        self.floats(what, matrix.bias, outputs, columns)
    }
}

/// Refuses codes whose products could saturate.
fn check_neighbours(what: &str, codes: &[i8], columns: usize) -> Result<(), PackError> {
    for (pair, rows) in codes.chunks(2 * columns).enumerate() {
        let (first, second) = rows.split_at(columns);
        // A last row without a neighbour meets a row of zeros.
        for (column, &a) in first.iter().enumerate() {
            let [a, b] = [a, second.get(column).copied().unwrap_or(0)].map(i32::from);
            let (up, down) = (a.max(0) + b.max(0), a.min(0) + b.min(0));
            if up > PAIR_MAX || -down > PAIR_MAX {
                let row = 2 * pair;
                return Err(PackError(format!(
                    "{what}: rows {row} and {} of column {column} hold {a} and {b}, beyond {PAIR_MAX} together",
                    row + 1
                )));
            }
        }
    }
    Ok(())
}

/// A layer over packed weights.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    pub(super) shape: &'a LayerShape,
    pub(super) attention_factors: &'a [f32],
    pub(super) qkv: Linear<'a>,
    pub(super) out: Linear<'a>,
    pub(super) attention_norm: Norm<'a>,
    pub(super) widen_factors: &'a [f32],
    pub(super) widen: Linear<'a>,
    pub(super) narrow_factors: &'a [f32],
    pub(super) narrow: Linear<'a>,
    pub(super) output_norm: Norm<'a>,
}

/// Takes the parts off the two blocks, in order.
struct Reader<'a> {
    codes: &'a [i8],
    params: &'a [f32],
}

impl<'a> Reader<'a> {
    fn floats(&mut self, count: usize) -> Result<&'a [f32], PackError> {
        let taken = self.params.split_at_checked(count);
        let (taken, rest) = taken.ok_or_else(|| PackError("the floats end early".into()))?;
        self.params = rest;
        Ok(taken)
    }

    fn norm(&mut self, hidden: usize) -> Result<Norm<'a>, PackError> {
        Ok(Norm { weight: self.floats(hidden)?, bias: self.floats(hidden)? })
    }

    fn matrix(&mut self, inputs: usize, outputs: usize) -> Result<Linear<'a>, PackError> {
        let (inputs, outputs) = (padded_inputs(inputs), padded_outputs(outputs));
        let taken = self.codes.split_at_checked(inputs * outputs);
        let (codes, rest) = taken.ok_or_else(|| PackError("the codes end early".into()))?;
        self.codes = rest;
        let [scales, sums, bias] =
            [self.floats(outputs)?, self.floats(outputs)?, self.floats(outputs)?];
        Ok(Linear { inputs, outputs, codes, scales, sums, bias })
    }
}

impl<'a> Layer<'a> {
    /// A layer of `shape` over what [`pack`] made.
    ///
    /// # Errors
    /// The blocks have other sizes than the shape asks for.
    pub fn new(
        shape: &'a LayerShape,
        codes: &'a [i8],
        params: &'a [f32],
    ) -> Result<Self, PackError> {
        shape.check()?;
        let hidden = shape.hidden;
        let [qkv, out, widen, narrow] = shape.sizes();
        let wide = padded_outputs(shape.wide);
        let mut reader = Reader { codes, params };
        let layer = Self {
            shape,
            attention_factors: reader.floats(hidden)?,
            qkv: reader.matrix(qkv.1, qkv.2)?,
            out: reader.matrix(out.1, out.2)?,
            attention_norm: reader.norm(hidden)?,
            widen_factors: reader.floats(hidden)?,
            widen: reader.matrix(widen.1, widen.2)?,
            narrow_factors: reader.floats(wide)?,
            narrow: reader.matrix(wide, narrow.2)?,
            output_norm: reader.norm(hidden)?,
        };
        check("what follows the codes", reader.codes.len(), 0)?;
        check("what follows the floats", reader.params.len(), 0)?;
        Ok(layer)
    }
}
