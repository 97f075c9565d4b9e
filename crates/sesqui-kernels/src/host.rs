//! Between Burn's tensors and slices in memory.

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex};
use burn::tensor::{DType, Tensor, TensorData};

/// A float tensor that Burn's autodiff watches, on the CPU backend.
pub(crate) type Tracked = FloatTensor<Autodiff<Flex>>;

/// 32-bit floats in this process's memory.
#[derive(Clone, Debug)]
pub(crate) enum Floats {
    /// Without derivatives.
    Plain(FlexTensor),
    /// Under autodiff.
    Tracked(Tracked),
}

impl Floats {
    /// `tensor`, if it is here, has 32-bit floats, and autodiff recomputes nothing.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let tensor = tensor.clone();
        if tensor.is_autodiff() {
            tensor
                .try_into_primitive::<Autodiff<Flex>>()
                .ok()
                .map(Self::Tracked)
        } else {
            tensor.try_into_primitive::<Flex>().ok().map(Self::Plain)
        }
    }

    /// Values in row-major order, without the graph.
    pub(crate) fn values(self) -> FlexTensor {
        match self {
            Self::Plain(tensor) => contiguous(tensor),
            Self::Tracked(tensor) => contiguous(tensor.into_primitive()),
        }
    }

    /// Under autodiff; a constant if it was not.
    pub(crate) fn tracked(self) -> Tracked {
        match self {
            Self::Plain(tensor) => <Autodiff<Flex> as AutodiffBackend>::from_inner(tensor),
            Self::Tracked(tensor) => tensor,
        }
    }
}

/// In row-major order.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The values of a tensor that is [`contiguous`].
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    match tensor.as_slice() {
        Some(values) => values,
        None => unreachable!("made contiguous, of 32-bit floats"),
    }
}

/// A tensor that owns `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

/// The public tensor of a result.
pub(crate) fn plain<const D: usize>(result: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(result)
}

/// The public tensor of a result under autodiff.
pub(crate) fn tracked<const D: usize>(result: Tracked) -> Tensor<D> {
    Tensor::from_primitive::<Autodiff<Flex>>(result)
}
