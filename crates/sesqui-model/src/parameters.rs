//! Parameters of a module by their path.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// One row of a parameter table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterShape {
    /// Path in the module, dots between parts.
    pub path: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl ParameterShape {
    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every float parameter of a module with its shape, in module order.
pub fn table<M: Module>(module: &M) -> Vec<ParameterShape> {
    struct Visitor {
        path: Vec<String>,
        rows: Vec<ParameterShape>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = param.lazy_shape().dims::<D>().to_vec();
            self.rows.push(ParameterShape {
                path: self.path.join("."),
                shape,
            });
        }
    }
    let mut visitor = Visitor {
        path: Vec::new(),
        rows: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.rows
}
