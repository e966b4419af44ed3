//! The 2⁴ cells of the three mechanisms that keep handlers out of T.

use super::*;
use freestanding::mechanisms::{HANDLER_RAN, experiment, handler_can_run};

macro_rules! cells {
    ($($name:literal $cell:literal)*) => {
        pub const CASES: &[Case] = &[
            $(case(concat!("mechanism_", $name), || cell($cell)),)*
        ];
    };
}

cells! {
    "00" 0 "01" 1 "02" 2 "03" 3 "04" 4 "05" 5 "06" 6 "07" 7
    "08" 8 "09" 9 "10" 10 "11" 11 "12" 12 "13" 13 "14" 14 "15" 15
}

fn cell(cell: u8) {
    t_spins();
    let end = experiment(cell);
    let expected =
        if handler_can_run(cell) { Status::Exited(HANDLER_RAN) } else { Status::Signaled { signal: 11, core: false } };
    check!(end == expected, "T: {end}, expected {expected}");
}
