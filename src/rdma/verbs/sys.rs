//! The only file that names the FFI crate: what the others use of it, and corrections.
//!
//! Corrected here: the number of an async event is read as an integer (the FFI crate's enum would be undefined for
//! a number newer than its headers), `rkey` arithmetic cannot overflow, the errors of verbs calls come in one form
//! (libibverbs returns a positive number, some device libraries a negative one, librdmacm -1 and `errno`), and the
//! flags are plain integers.

#[cfg(test)]
pub(super) use rdma_sys::ibv_query_qp;
pub(super) use rdma_sys::rdma_cm_event_type as cm_event;
pub(super) use rdma_sys::{bind_mw_t, ibv_wc_status as wc_status, ibv_wr_opcode as wr_opcode};
pub(super) use rdma_sys::{
    ibv_ack_async_event, ibv_ack_cq_events, ibv_alloc_mw, ibv_alloc_pd, ibv_create_comp_channel,
    ibv_create_cq, ibv_dealloc_mw, ibv_dealloc_pd, ibv_dereg_mr, ibv_destroy_comp_channel,
    ibv_destroy_cq, ibv_destroy_qp, ibv_free_device_list, ibv_get_async_event, ibv_get_cq_event,
    ibv_get_device_list, ibv_modify_qp, ibv_open_device, ibv_poll_cq, ibv_post_recv, ibv_post_send,
    ibv_query_device, ibv_query_port, ibv_reg_mr, ibv_req_notify_cq,
};
pub(super) use rdma_sys::{
    ibv_async_event, ibv_close_device, ibv_comp_channel, ibv_context, ibv_cq, ibv_device_attr,
    ibv_mr, ibv_mw, ibv_mw_bind_info, ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_cap,
    ibv_qp_init_attr, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wc, imm_data_invalidated_rkey_union_t,
    rdma_cm_event, rdma_cm_id, rdma_conn_param, rdma_event_channel, rdma_t,
};
pub(super) use rdma_sys::{
    rdma_accept, rdma_ack_cm_event, rdma_bind_addr, rdma_connect, rdma_create_event_channel,
    rdma_create_id, rdma_create_qp, rdma_destroy_event_channel, rdma_destroy_id, rdma_disconnect,
    rdma_free_devices, rdma_get_cm_event, rdma_get_devices, rdma_listen, rdma_migrate_id,
    rdma_reject, rdma_resolve_addr, rdma_resolve_route, rdma_set_option,
};

use rdma_sys::{ibv_mw_type, ibv_qp_state, ibv_qp_type, ibv_transport_type, rdma_port_space};

pub(super) const PS_TCP: rdma_port_space::Type = rdma_port_space::RDMA_PS_TCP;
pub(super) const QPT_RC: ibv_qp_type::Type = ibv_qp_type::IBV_QPT_RC;
pub(super) const QPS_ERR: ibv_qp_state::Type = ibv_qp_state::IBV_QPS_ERR;
pub(super) const TRANSPORT_IWARP: ibv_transport_type::Type =
    ibv_transport_type::IBV_TRANSPORT_IWARP;
pub(super) const MW_TYPE_2: ibv_mw_type::Type = ibv_mw_type::IBV_MW_TYPE_2;

pub(super) const ACCESS_LOCAL_WRITE: u32 = 1;
pub(super) const ACCESS_REMOTE_WRITE: u32 = 1 << 1;
pub(super) const ACCESS_REMOTE_READ: u32 = 1 << 2;
pub(super) const ACCESS_MW_BIND: u32 = 1 << 4;

pub(super) const SEND_SIGNALED: u32 = 1 << 1;
pub(super) const SEND_SOLICITED: u32 = 1 << 2;
pub(super) const SEND_INLINE: u32 = 1 << 3;

/// In `ibv_wc::wc_flags`: the message invalidated a key.
pub(super) const WC_WITH_INV: u32 = 1 << 3;

pub(super) const DEVICE_MEM_WINDOW_TYPE_2B: u32 = 1 << 24;
pub(super) const DEVICE_MEM_MGT_EXTENSIONS: u32 = 1 << 21;

pub(super) const QP_STATE: i32 = 1;
#[cfg(test)]
pub(super) const QP_AV: i32 = 1 << 7;
#[cfg(test)]
pub(super) const QP_TIMEOUT: i32 = 1 << 9;

pub(super) const PORT_ACTIVE: u32 = 4;

pub(super) const LINK_LAYER_INFINIBAND: u8 = 1;
pub(super) const LINK_LAYER_ETHERNET: u8 = 2;

pub(super) const OPTION_ID: i32 = 0;
pub(super) const OPTION_ID_TOS: i32 = 0;
pub(super) const OPTION_ID_AFONLY: i32 = 2;
pub(super) const OPTION_ID_ACK_TIMEOUT: i32 = 3;

/// IB CM: nobody listens.
pub(super) const REJECT_INVALID_SERVICE: i32 = 8;

/// The next key of a window: the low 8 bits count.
pub(super) fn next_key(key: u32) -> u32 {
    (key & !0xff) | (key.wrapping_add(1) & 0xff)
}

/// The number of an async event.
///
/// # Safety
/// `event` points to an event that libibverbs has filled in.
pub(super) unsafe fn event_number(event: *const ibv_async_event) -> u32 {
    // SAFETY: the field is a 32-bit number; read as such it is valid whatever its value.
    unsafe { std::ptr::addr_of!((*event).event_type).cast::<u32>().read() }
}

/// What a verbs call returned (0, a positive or a negative error number) as a result.
pub(super) fn verbs_result(returned: i32) -> std::io::Result<()> {
    match returned {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error.saturating_abs())),
    }
}

/// What a librdmacm call returned (0, or a negative number with the error in `errno`) as a result.
pub(super) fn cm_result(returned: i32) -> std::io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether librdmacm could be loaded. The FFI crate loads it on first use and calls nothing if it is not there.
pub fn library_present() -> bool {
    ["librdmacm.so.1", "librdmacm.so"].iter().any(|name| {
        let Ok(name) = std::ffi::CString::new(*name) else {
            return false;
        };
        // SAFETY: a null-terminated name; opening and closing changes only the library's own reference count.
        unsafe {
            let handle = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY);
            if handle.is_null() {
                return false;
            }
            libc::dlclose(handle);
        }
        true
    })
}
