"""The backward pass of heads in which something is not finite: slow, and with NaN and infinity where autograd has them.

The fast kernels note such numbers, and this one, whose programs otherwise end at once, does those heads again.
"""

from .inhibitor_triton_float32 import tl, triton


@triton.jit
def _sign(x):
    """0 for NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _not_finite(p_x, count, stride, BLOCK: tl.constexpr):
    """NaN if one of `count` numbers is NaN or infinite, else 0."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        o_x = first + tl.arange(0, BLOCK)
        b_sum += tl.load(p_x + o_x * stride, mask=o_x < count, other=0.0) * 0.0
    return tl.sum(b_sum, 0)


@triton.jit
def _pair(
    x, v, g, m_d, seen, kept, alpha, beta, scale, delta, center, b_opened,
    SIGNED: tl.constexpr, GATE: tl.constexpr, CENTERED: tl.constexpr, DIVIDED: tl.constexpr,
):  # fmt: skip
    """For queries and keys x [L, columns] apart: their distances [L, 1], what passes [L, columns], what of the gradient
    g goes to the values, and to the scores and to delta [L, 1]; all 0 where not seen, or where a value is not kept.

    b_opened: the gradient of what the sum is divided by.
    """
    distance = tl.where(seen, tl.sum(tl.abs(x), 1)[:, None], 0.0)
    s = distance * scale
    if CENTERED:
        s -= scale * center
    s += alpha
    z = s
    if not GATE:
        z = tl.where(s <= 0, 0.0, s)
    b_sign, size = tl.full(v.shape, 1.0, tl.float32), v
    if SIGNED:
        b_sign, size = _sign(v), tl.abs(v)
    if GATE:
        size = size / 2
    excess = size - z
    # As torch's relu: NaN passes.
    blocked = (excess <= 0) | ~(kept & m_d)
    passed = tl.where(blocked, 0.0, beta * g * b_sign)
    b_out, to_v = excess * b_sign, passed * b_sign
    if GATE:
        is_open = (excess >= tl.abs(v)) & (excess > 0)
        b_out = tl.where(is_open, v, v / 2 - b_sign * z)
        to_v = tl.where(blocked, 0.0, beta * g * tl.where(is_open, 1.0, 0.5))
        passed = tl.where(is_open, 0.0, passed)
    dz = -tl.sum(passed, 1)[:, None]
    to_delta = tl.zeros_like(dz)
    if DIVIDED:
        if GATE:
            ramp = 0.5 - delta * z
            slope = tl.where((ramp >= 0) & (ramp <= 1), -b_opened, 0.0)
        else:
            slope = tl.where(1.0 - delta * z <= 0, 0.0, -b_opened)
        dz += delta * slope
        to_delta = tl.where(seen, z * slope, 0.0)
    still = ~seen
    if not GATE:
        still = still | (s <= 0)
    return distance, tl.where(blocked, 0.0, b_out), to_v, tl.where(still, 0.0, dz), to_delta


@triton.jit(do_not_specialize=["H", "M", "N"])
def _backward_flawed_kernel(
    g, q, k, v, padding, dropout, alpha, beta, gamma, delta, center, nearest, opened, ds_center, sums, dbeta, dq, dk, dv,
    H, M, N, root, s_alpha, s_beta, s_gamma, s_delta, s_row,
    s_gb, s_gh, s_gm, s_gd, s_qb, s_qh, s_qm, s_qd, s_kb, s_kh, s_kn, s_kd, s_vb, s_vh, s_vn, s_vd,
    s_dqb, s_dqh, s_dqm, s_dqd, s_dkb, s_dkh, s_dkn, s_dkd, s_dvb, s_dvh, s_dvn, s_dvd, s_pb, s_pn, s_db, s_dn,
    D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, SIGNED: tl.constexpr, GATE: tl.constexpr,
    MEAN: tl.constexpr, LEAST: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr, DROPPED: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """What `_backward_query_kernel` and `_backward_key_kernel` leave of a head whose `sums` or `dbeta` are not finite."""
    CENTERED: tl.constexpr = MEAN or LEAST
    DIVIDED: tl.constexpr = delta is not None
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // H, bh % H
    rows = tl.num_programs(0).to(tl.int64) * M
    p_sums, p_dbeta = sums + bh * M, dbeta + bh * N
    b_alpha, b_beta, b_gamma = tl.load(alpha + h * s_alpha), tl.load(beta + h * s_beta), tl.load(gamma + h * s_gamma)
    flaw = _not_finite(p_sums, M, s_row, 128) + _not_finite(p_dbeta, N, s_row, 128) + (b_alpha + b_beta + b_gamma) * 0.0
    b_delta, b_opened = 0.0, 0.0
    if DIVIDED:
        b_delta = tl.load(delta + h * s_delta)
        flaw += b_delta * 0.0
    if flaw == 0:
        return
    scale = b_gamma * root
    o_d, o_l = tl.arange(0, COLUMNS)[None, :], tl.arange(0, BLOCK)[:, None]
    m_d = o_d < D
    p_q, p_g = q + b * s_qb + h * s_qh + o_d * s_qd, g + b * s_gb + h * s_gh + o_d * s_gd
    p_k, p_v = k + b * s_kb + h * s_kh + o_d * s_kd, v + b * s_vb + h * s_vh + o_d * s_vd

    for first in range(0, M, BLOCK):
        o_m = first + o_l
        m_m, last = o_m < M, o_m + (N - M)
        b_q = tl.load(p_q + o_m * s_qm, mask=m_m & m_d, other=0.0).to(tl.float32)
        b_g = tl.load(p_g + o_m * s_gm, mask=m_m & m_d, other=0.0).to(tl.float32)
        b_center = tl.zeros([BLOCK, 1], tl.float32)
        if CENTERED:
            b_center = tl.load(center + bh * M + o_m, mask=m_m, other=0.0)
        if DIVIDED:
            b_opened = tl.load(opened + bh * M + o_m, mask=m_m, other=0.0)
        b_least, b_nearest = tl.full([BLOCK, 1], float("inf"), tl.float32), tl.full([BLOCK, 1], -1, tl.int32)
        b_out, b_dq = tl.zeros([BLOCK, COLUMNS], tl.float32), tl.zeros([BLOCK, COLUMNS], tl.float32)
        b_ds, b_count = tl.zeros([BLOCK, 1], tl.float32), tl.zeros([BLOCK, 1], tl.float32)
        b_moment, b_centered = tl.zeros([BLOCK, 1], tl.float32), tl.zeros([BLOCK, 1], tl.float32)
        b_ddelta = tl.zeros([BLOCK, 1], tl.float32)
        for again in tl.static_range(2):
            b_ds_center = b_ds
            if MEAN:
                b_ds_center = b_ds / tl.maximum(b_count, 1.0)
            for j in range(0, N):
                seen, kept = m_m, m_m
                if CAUSAL:
                    seen = seen & (j <= last)
                if PADDED:
                    seen = seen & (tl.load(padding + b * s_pb + j * s_pn) != 0)
                kept = seen
                if DROPPED:
                    kept = kept & (tl.load(dropout + b * s_db + j * s_dn) != 0)
                b_x = b_q - tl.load(p_k + j * s_kn, mask=m_d, other=0.0).to(tl.float32)
                b_v = tl.load(p_v + j * s_vn, mask=m_d, other=0.0).to(tl.float32)
                distance, passed, _, ds, to_delta = _pair(
                    b_x, b_v, b_g, m_d, seen, kept, b_alpha, b_beta, scale, b_delta, b_center, b_opened,
                    SIGNED, GATE, CENTERED, DIVIDED,
                )  # fmt: skip
                if again == 0:
                    b_out += passed
                    b_ds += ds
                    b_ddelta += to_delta
                    if LEAST:
                        nearer = (distance < b_least) | ((distance != distance) & (b_least == b_least)) | (b_nearest < 0)
                        b_least = tl.where(seen & nearer, distance, b_least)
                        b_nearest = tl.where(seen & nearer, j, b_nearest)
                    b_count += tl.where(seen, 1.0, 0.0)
                    b_moment += ds * distance
                    b_centered += tl.where(seen, ds * (distance - b_center), 0.0)
                else:
                    slope = scale * ds
                    if MEAN:
                        slope -= scale * b_ds_center
                    if LEAST:
                        slope -= tl.where(j == b_nearest, scale * b_ds_center, 0.0)
                    b_dq += tl.where(seen, slope * _sign(b_x), 0.0)
        if LEAST:
            b_center = tl.where(b_count > 0, b_center, 0.0)  # infinite for a row that sees none
        if CENTERED:
            # The exact form, but for what is not finite: there the parts it is made of count.
            b_moment -= b_ds * b_center
            b_moment = tl.where(tl.abs(b_moment) < float("inf"), b_centered, b_moment)
            tl.store(ds_center + bh * M + o_m, b_ds_center, mask=m_m)
        if LEAST:
            tl.store(nearest + bh * M + o_m, b_nearest, mask=m_m)
        if DIVIDED:
            tl.store(p_sums + 3 * rows + o_m, b_ddelta, mask=m_m)
        tl.store(dq + b * s_dqb + h * s_dqh + o_m * s_dqm + o_d * s_dqd, b_dq.to(dq.dtype.element_ty), mask=m_m & m_d)
        tl.store(p_sums + o_m, b_ds, mask=m_m)
        tl.store(p_sums + rows + o_m, tl.sum(tl.where(m_d, b_g * b_out, 0.0), 1)[:, None], mask=m_m)
        tl.store(p_sums + 2 * rows + o_m, root * b_moment, mask=m_m)

    tl.debug_barrier()  # what was stored is read by other threads than wrote it
    for first in range(0, N, BLOCK):
        o_n = first + o_l
        m_n = o_n < N
        b_k = tl.load(p_k + o_n * s_kn, mask=m_n & m_d, other=0.0).to(tl.float32)
        b_v = tl.load(p_v + o_n * s_vn, mask=m_n & m_d, other=0.0).to(tl.float32)
        b_dk, b_dv = tl.zeros([BLOCK, COLUMNS], tl.float32), tl.zeros([BLOCK, COLUMNS], tl.float32)
        m_seen = m_n
        if PADDED:
            m_seen = m_seen & (tl.load(padding + b * s_pb + o_n * s_pn, mask=m_n, other=0) != 0)
        m_kept = m_seen
        if DROPPED:
            m_kept = m_kept & (tl.load(dropout + b * s_db + o_n * s_dn, mask=m_n, other=0) != 0)
        for i in range(0, M):
            seen, kept = m_seen, m_kept
            if CAUSAL:
                seen, kept = seen & (o_n <= i + (N - M)), kept & (o_n <= i + (N - M))
            b_x = tl.load(p_q + i * s_qm, mask=m_d, other=0.0).to(tl.float32) - b_k
            b_g = tl.load(p_g + i * s_gm, mask=m_d, other=0.0).to(tl.float32)
            b_center, b_ds_center = 0.0, 0.0
            if CENTERED:
                b_center, b_ds_center = tl.load(center + bh * M + i), tl.load(ds_center + bh * M + i)
            if DIVIDED:
                b_opened = tl.load(opened + bh * M + i)
            _, _, to_v, ds, _ = _pair(
                b_x, b_v, b_g, m_d, seen, kept, b_alpha, b_beta, scale, b_delta, b_center, b_opened,
                SIGNED, GATE, CENTERED, DIVIDED,
            )  # fmt: skip
            slope = scale * ds
            if MEAN:
                slope -= scale * b_ds_center
            if LEAST:
                slope -= tl.where(o_n == tl.load(nearest + bh * M + i), scale * b_ds_center, 0.0)
            b_dk -= tl.where(seen, slope * _sign(b_x), 0.0)
            b_dv += to_v
        tl.store(dk + b * s_dkb + h * s_dkh + o_n * s_dkn + o_d * s_dkd, b_dk.to(dk.dtype.element_ty), mask=m_n & m_d)
        tl.store(dv + b * s_dvb + h * s_dvh + o_n * s_dvn + o_d * s_dvd, b_dv.to(dv.dtype.element_ty), mask=m_n & m_d)
        tl.store(p_dbeta + o_n, tl.zeros([BLOCK, 1], tl.float32), mask=m_n)
