//! The colours of plots.

use plotters::style::RGBColor;

/// Of lines and points, one after the other; what stands beside them names each, so that nothing hangs on
/// telling colours apart.
pub const INKS: [RGBColor; 7] = [
    RGBColor(90, 90, 90),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Of grid lines.
pub const PALE: RGBColor = RGBColor(225, 225, 225);
