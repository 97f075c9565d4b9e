//! Parameter identities that do not depend on the run.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Bool, Int, Tensor};

/// Gives every parameter an identity derived from its path. Burn draws identities at random, and
/// checkpoints carry them: without this no two runs would write the same bytes.
pub fn with_stable_ids<M: Module>(module: M) -> M {
    module.map(&mut Stable { path: Vec::new() })
}

struct Stable {
    path: Vec<String>,
}

impl Stable {
    fn id(&self) -> ParamId {
        // FNV-1a over the path; 64 bits against some hundred paths.
        let hash = self
            .path
            .join(".")
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        ParamId::from(hash)
    }
}

impl ModuleMapper for Stable {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (_, tensor, mapper) = param.consume();
        Param::from_mapped_value(self.id(), tensor, mapper)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let (_, tensor, mapper) = param.consume();
        Param::from_mapped_value(self.id(), tensor, mapper)
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        let (_, tensor, mapper) = param.consume();
        Param::from_mapped_value(self.id(), tensor, mapper)
    }
}
