//! What a strong and a weak model disagree about, learned from questions without answers.

use burn::tensor::{Device, Tensor, TensorData};

use crate::refine::config::Direction;
use crate::refine::eigen::eigen;

/// Differences `strong - weak` seen so far.
#[derive(Clone, Debug)]
pub struct Calibrator {
    /// Sum of outer products, `[d_model][d_model]`.
    moment: Vec<Vec<f64>>,
    sum: Vec<f64>,
    count: usize,
}

/// What was calibrated.
#[derive(Clone, Debug)]
pub enum Calibration {
    /// For [`Direction::Gated`]: an orthonormal basis `[d_model, rank]`.
    Subspace(Tensor<2>),
    /// For [`Direction::Mean`]: `[d_model]`.
    Mean(Tensor<1>),
}

/// Why nothing could be calibrated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    /// No difference but zero.
    #[error("the strong and the weak model agree on every one of {0} latents")]
    Nothing(usize),
    /// A model diverged.
    #[error("the strong and the weak model differ by something that is not a finite number")]
    NotFinite,
}

impl Calibrator {
    /// Nothing seen yet, of models of width `d_model`.
    pub fn new(d_model: usize) -> Self {
        Self {
            moment: vec![vec![0.0; d_model]; d_model],
            sum: vec![0.0; d_model],
            count: 0,
        }
    }

    /// Takes differences, row-major `[rows, d_model]`.
    pub fn add(&mut self, differences: &[f32]) {
        for difference in differences.chunks_exact(self.sum.len()) {
            let difference: Vec<f64> = difference.iter().map(|&x| f64::from(x)).collect();
            for (row, x) in self.moment.iter_mut().zip(&difference) {
                row.iter_mut()
                    .zip(&difference)
                    .for_each(|(m, y)| *m += x * y);
            }
            self.sum
                .iter_mut()
                .zip(&difference)
                .for_each(|(m, x)| *m += x);
            self.count += 1;
        }
    }

    /// Differences seen.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What `direction` asks for; `None` for one that needs no calibration.
    ///
    /// # Errors
    ///
    /// When all differences are zero, or one is not finite.
    pub fn calibrate(
        &self,
        direction: Direction,
        device: &Device,
    ) -> Result<Option<Calibration>, CalibrationError> {
        let calibrates = matches!(direction, Direction::Gated { .. } | Direction::Mean);
        if calibrates && !self.moment.iter().flatten().all(|value| value.is_finite()) {
            return Err(CalibrationError::NotFinite);
        }
        if calibrates && self.trace() == 0.0 {
            return Err(CalibrationError::Nothing(self.count));
        }
        Ok(match direction {
            Direction::Constant | Direction::Differentiated => None,
            Direction::Mean => {
                let mean = self.sum.iter().map(|sum| (sum / self.count as f64) as f32);
                let mean: Vec<f32> = mean.collect();
                Some(Calibration::Mean(Tensor::from_data(
                    mean.as_slice(),
                    device,
                )))
            }
            Direction::Gated { variance } => {
                Some(Calibration::Subspace(self.subspace(variance, device)))
            }
        })
    }

    /// The directions that hold a share `variance` of the squared norm, most important first: left
    /// singular vectors of the differences, as eigenvectors of their second moment about zero.
    fn subspace(&self, variance: f64, device: &Device) -> Tensor<2> {
        let d_model = self.sum.len();
        let found = eigen(self.moment.clone());
        let wanted = variance * self.trace();
        let mut held = 0.0;
        let mut rank = 0;
        while rank < found.len() && held < wanted {
            held += found[rank].value;
            rank += 1;
        }
        let entry = |row: usize| found[..rank].iter().map(move |of| of.vector[row] as f32);
        let basis: Vec<f32> = (0..d_model).flat_map(entry).collect();
        Tensor::from_data(TensorData::new(basis, [d_model, rank]), device)
    }

    fn trace(&self) -> f64 {
        self.moment.iter().enumerate().map(|(i, row)| row[i]).sum()
    }
}

impl Calibration {
    /// Dimensions of the subspace; 1 for a mean.
    pub fn rank(&self) -> usize {
        match self {
            Self::Subspace(basis) => basis.dims()[1],
            Self::Mean(_) => 1,
        }
    }
}

/// `gamma * P d` for differences `d` `[batch, 1, d_model]`, `P` the projection onto `basis`, and the
/// gates `gamma = |P d| / |d|` `[batch, 1, 1]`, in [0, 1]; 0 where `d` is 0.
pub fn gated(basis: &Tensor<2>, difference: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let basis = basis.clone().unsqueeze::<3>();
    let inside = difference
        .clone()
        .matmul(basis.clone())
        .matmul(basis.swap_dims(1, 2));
    // Far below any difference that a 32-bit state can have.
    let gate = (norm(inside.clone()) / norm(difference).clamp_min(1e-30)).clamp(0.0, 1.0);
    (inside * gate.clone(), gate)
}

/// Euclidean norms of rows `[batch, 1, d_model]`: `[batch, 1, 1]`.
pub(crate) fn norm(rows: Tensor<3>) -> Tensor<3> {
    rows.clone().mul(rows).sum_dim(2).sqrt()
}
