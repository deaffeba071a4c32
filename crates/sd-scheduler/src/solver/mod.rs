//! One algorithm a file. A file has an [`Entry`], a configuration that reads the keys of its class,
//! and a solver.

use crate::registry::Entry;

mod ddim;
mod ddpm;
mod deis;
mod dpmpp;
mod dpmpp_2s;
mod dpmpp_2s_ancestral;
mod dpmpp_sde;
mod euler;
mod euler_ancestral;
mod heun;
mod kdpm2;
mod kdpm2_ancestral;
mod lcm;
mod lms;
mod pndm;
mod table;
mod tcd;
mod unipc;

/// All schedulers, in the order in which lists show them.
pub static ALL: &[Entry] = &[
    ddim::ENTRY,
    ddpm::ENTRY,
    pndm::ENTRY,
    lms::ENTRY,
    euler::ENTRY,
    euler_ancestral::ENTRY,
    heun::ENTRY,
    kdpm2::ENTRY,
    kdpm2_ancestral::ENTRY,
    dpmpp::DPMPP_2M,
    dpmpp::DPMPP_3M,
    dpmpp::DPMPP_2M_SDE,
    dpmpp::DPMPP_3M_SDE,
    dpmpp_2s::ENTRY,
    dpmpp_2s_ancestral::ENTRY,
    dpmpp_sde::ENTRY,
    deis::ENTRY,
    unipc::ENTRY,
    lcm::ENTRY,
    tcd::ENTRY,
];

/// A run of fewer steps than this ends with lower orders, where that is asked for.
const SHORT_RUN: usize = 15;

/// The order that each step of a multistep solver may have, if there is enough of a past.
fn multistep_orders(steps: usize, order: usize, lower_order_final: bool) -> Vec<usize> {
    let lowered = if lower_order_final && steps < SHORT_RUN {
        steps
    } else {
        0
    };
    (0..steps)
        .map(|step| {
            if step < steps - lowered.min(2) {
                order
            } else {
                order.min(steps - step)
            }
        })
        .collect()
}
