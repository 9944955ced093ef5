"""The forward pass for inference in half precision: two channels an instruction, packed as float16 pairs.

Differences, distances within a lane and the sums over `CHUNK` keys are float16; everything else is float32. What float16
cannot hold, too large or too small, is noticed and computed again by the float32 kernel, in programs that otherwise end at
once. bfloat16 inputs become float16, which keeps all their digits.
"""

from .float32 import (
    _MIRRORED,
    _any_seen,
    _channel_sum,
    _columns,
    _first_lane,
    _full,
    _opaque,
    _place,
    _row_sum,
    _rows,
    _where_seen,
    tl,
    triton,
)

# Keys whose values are summed in float16 before they join the float32 sum.
CHUNK = tl.constexpr(8)
# A sum over a chunk of values up to this stays finite; below the other, float16 has fewer digits than bfloat16.
_LARGEST_VALUE = tl.constexpr(65504.0 / 8)
_SMALLEST_VALUE = tl.constexpr(2.0**-12)
# The mean distance of a channel below which the rounding of subnormal numbers shows.
_SMALLEST_DISTANCE = tl.constexpr(2.0**-16)


@triton.jit
def _low(x, ASM: tl.constexpr):
    """The first of two packed float16 numbers, in float32."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{.reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, l;}",
            "=f,r",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return (x & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _high(x, ASM: tl.constexpr):
    """The second of two packed float16 numbers, in float32."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{.reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, h;}",
            "=f,r",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return ((x >> 16) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _packed(low, high, ASM: tl.constexpr):
    """Two float32 numbers rounded to float16 and packed."""
    if ASM:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $1, $2;", "=r,f,f", [high, low], dtype=tl.int32, is_pure=True, pack=1
        )
    first = low.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return first | (high.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _add(x, y):
    """Sum of two packed pairs."""
    return tl.inline_asm_elementwise("add.f16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _distance(x, y, ASM: tl.constexpr):
    """Sum over C of the distances of packed pairs, in float32: [R, C, W, A, T] -> [R, 1, W, A, T], one for each lane."""
    if ASM:
        apart = tl.inline_asm_elementwise(
            "{.reg .b32 t; sub.f16x2 t, $1, $2; abs.f16x2 $0, t;}",
            "=r,r,r",
            [x, y],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        pair = tl.reduce(apart, 3 if _MIRRORED else 1, _add, keep_dims=True)
        return _low(pair, ASM) + _high(pair, ASM)
    else:
        low = tl.abs(_low(x, ASM) - _low(y, ASM)).to(tl.float16)
        high = tl.abs(_high(x, ASM) - _high(y, ASM)).to(tl.float16)
        return _channel_sum(low).to(tl.float32) + _channel_sum(high).to(tl.float32)


@triton.jit
def _inhibit(v, z, SIGNED: tl.constexpr, ASM: tl.constexpr):
    """For packed pairs v and the float32 z: clamp(v, -z, z) if signed, else relu(v - z)."""
    if ASM:
        if SIGNED:
            return tl.inline_asm_elementwise(
                "min.xorsign.abs.f16x2 $0, $1, $2;",
                "=r,r,r",
                [v, _packed(z, z, ASM)],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
        else:
            return tl.inline_asm_elementwise(
                "{.reg .b32 one; mov.b32 one, 0x3C003C00; fma.rn.relu.f16x2 $0, $1, one, $2;}",
                "=r,r,r",
                [v, _packed(-z, -z, ASM)],
                dtype=tl.int32,
                is_pure=True,
                pack=1,
            )
    else:
        low, high, z = _low(v, ASM), _high(v, ASM), z.to(tl.float16).to(tl.float32)
        if SIGNED:
            low, high = tl.minimum(tl.maximum(low, -z), z), tl.minimum(tl.maximum(high, -z), z)
        else:
            low, high = tl.maximum(low - z, 0.0), tl.maximum(high - z, 0.0)
        return _packed(low, high, ASM)


@triton.jit
def _sum_of_pairs(x, y, ASM: tl.constexpr):
    """Sum of two packed pairs, also where there is no PTX."""
    if ASM:
        return _add(x, y)
    return _packed(_low(x, ASM) + _low(y, ASM), _high(x, ASM) + _high(y, ASM), ASM)


@triton.jit(do_not_specialize=["H", "N"])
def _pack_kernel(
    k, v, padding, dropout, k_half, v_half,
    H, N, s_kb, s_kh, s_kn, s_kd, s_vb, s_vh, s_vn, s_vd, s_pb, s_pn, s_db, s_dn,
    D: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr, DROPPED: tl.constexpr,
):  # fmt: skip
    """k_half, v_half (B, H, ceil(N / BLOCK) · BLOCK, COLUMNS): k and v in float16, 0 wherever there is nothing to count."""
    blocks = tl.cdiv(N, BLOCK)
    pid = tl.program_id(0).to(tl.int64)
    bh = pid // blocks
    b, h = bh // H, bh % H
    o_n = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)[:, None]
    o_d = tl.arange(0, COLUMNS)[None, :]
    m_n = o_n < N
    if PADDED:
        m_n = m_n & (tl.load(padding + b * s_pb + o_n * s_pn, mask=m_n, other=0) != 0)
    b_k = tl.load(k + b * s_kb + h * s_kh + o_n * s_kn + o_d * s_kd, mask=m_n & (o_d < D), other=0.0)
    if DROPPED:
        m_n = m_n & (tl.load(dropout + b * s_db + o_n * s_dn, mask=m_n, other=0) != 0)
    b_v = tl.load(v + b * s_vb + h * s_vh + o_n * s_vn + o_d * s_vd, mask=m_n & (o_d < D), other=0.0)
    o_half = (bh * blocks * BLOCK + o_n) * COLUMNS + o_d
    tl.store(k_half + o_half, b_k.to(tl.float32).to(tl.float16))
    tl.store(v_half + o_half, b_v.to(tl.float32).to(tl.float16))


@triton.jit(do_not_specialize=["N", "s_total"])
def _half_value_sum_kernel(
    v_half, total, unfit, N, ROWS,
    COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Sums of the values as in `_value_sum_kernel`, added in the order and precision of the forward kernel: total (B, H,
    COLUMNS) or with CAUSAL (B, H, N, COLUMNS). unfit (B, H): whether the values are beyond what float16 holds."""
    bh = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, COLUMNS)
    p_v = v_half + bh * ROWS * COLUMNS + o_d
    p_total = total + bh * COLUMNS * (N if CAUSAL else 1) + o_d
    b_sum, b_largest = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for j0 in range(0, N, CHUNK):
        b_chunk = tl.zeros([COLUMNS], tl.float16)
        for step in tl.static_range(CHUNK):
            b_v = tl.load(p_v + (j0 + step) * COLUMNS)
            b_chunk += b_v
            b_largest = tl.maximum(b_largest, tl.abs(b_v.to(tl.float32)), propagate_nan=tl.PropagateNan.ALL)
            if CAUSAL:
                tl.store(
                    p_total + (j0 + step) * COLUMNS, b_sum + b_chunk.to(tl.float32), mask=o_d < (N - j0 - step) * COLUMNS
                )
        b_sum += b_chunk.to(tl.float32)
    if not CAUSAL:
        tl.store(p_total, b_sum)
    # Not "is too large", which a nan is not.
    fits = tl.min(tl.where(b_largest <= _LARGEST_VALUE, 1, 0), 0)
    tl.store(unfit + bh, 1 - fits * tl.where(tl.max(b_largest, 0) >= _SMALLEST_VALUE, 1, 0))


@triton.jit
def _half_row(pointer, C: tl.constexpr, T: tl.constexpr):
    """One packed row of k or v, which all rows of the tile share, [1, C, 1, 1, T]."""
    return tl.load(pointer + _columns(C, T))


@triton.jit(do_not_specialize=["H", "M", "N", "ROWS", "s_row", "s_qd", "s_od"])
def _forward_half_kernel(
    q, k_half, v_half, padding, alpha, beta, gamma, total, unfit, out, mean, again,
    H, M, N, ROWS, root, s_alpha, s_beta, s_gamma, s_row,
    s_qb, s_qh, s_qm, s_qd, s_ob, s_oh, s_om, s_od, s_pb, s_pn,
    D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr,
    BLOCK: tl.constexpr, SIGNED: tl.constexpr, CENTERED: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """As `_forward_kernel`, with k_half and v_half (B, H, ROWS, 2 · C · T) as `_pack_kernel` leaves them, read as pairs.

    again, one for each program: 1 where the float32 kernel has to compute these rows.
    """
    blocks = tl.cdiv(M, R * W * A)
    pid = tl.program_id(0)
    bh = (pid // blocks).to(tl.int64)
    b, h = bh // H, bh % H
    o_m = _rows(pid % blocks, R, W, A, T)
    o_c = _columns(C, T)
    m_m = o_m < M
    p_k, p_v = k_half + bh * ROWS * C * T, v_half + bh * ROWS * C * T
    p_padding = padding + b * s_pb
    last = o_m + (N - M)
    stop = N
    if CAUSAL:
        stop = tl.minimum(N, tl.maximum(tl.max(last), -1) + 1)

    p_q = q + b * s_qb + h * s_qh + o_m * s_qm + 2 * o_c * s_qd
    low = tl.load(p_q, mask=m_m & (2 * o_c < D), other=0.0).to(tl.float32)
    high = tl.load(p_q + s_qd, mask=m_m & (2 * o_c + 1 < D), other=0.0).to(tl.float32)
    b_q = _packed(low, high, ASM)
    b_alpha, b_beta = tl.load(alpha + h * s_alpha), tl.load(beta + h * s_beta)
    scale = tl.load(gamma + h * s_gamma) * root
    shift = _full(R, 1, W, A, T, 0.0, tl.float32) + b_alpha
    if CENTERED:
        b_sum, b_count = _full(R, 1, W, A, T, 0.0, tl.float32), _full(R, 1, W, A, T, 0.0, tl.float32)
        for j0 in range(0, stop, BLOCK):
            some = True
            if PADDED:
                some = _any_seen(p_padding, j0, stop, s_pn, BLOCK)
            if some:
                for i in range(j0, tl.minimum(j0 + BLOCK, stop)):
                    j = _opaque(i, ASM)
                    distance = _distance(b_q, _half_row(p_k + j * (C * T), C, T), ASM)
                    place = _place(j, j, p_padding, s_pn, PADDED)
                    b_sum += _where_seen(place, last, distance, 0.0, CAUSAL, PADDED)
                    if CAUSAL or PADDED:
                        b_count += _where_seen(place, last, _full(1, 1, 1, 1, T, 1.0, tl.float32), 0.0, CAUSAL, PADDED)
        if not (CAUSAL or PADDED):
            b_count += stop
        b_mean = _row_sum(b_sum) / tl.maximum(b_count, 1.0)
        tl.store(mean + bh * M + o_m * s_row, b_mean, mask=m_m & _first_lane(T))
        shift = shift - scale * b_mean

    b_low, b_high = _full(R, C, W, A, T, 0.0, tl.float32), _full(R, C, W, A, T, 0.0, tl.float32)
    b_check = _full(R, 1, W, A, T, 0.0, tl.float32)
    for j0 in range(0, stop, BLOCK):
        some = True
        if PADDED:
            some = _any_seen(p_padding, j0, stop, s_pn, BLOCK)
        if some:
            # Rows beyond the last key are 0 and add nothing, as those of keys that do not count.
            for i in range(j0, tl.minimum(j0 + BLOCK, stop), CHUNK):
                first = _opaque(i, ASM)
                p_ki, p_vi = p_k + first * (C * T), p_v + first * (C * T)
                b_chunk = _full(R, C, W, A, T, 0, tl.int32)
                for step in tl.static_range(CHUNK):
                    distance = _row_sum(_distance(b_q, _half_row(p_ki + step * (C * T), C, T), ASM))
                    b_check += distance
                    z = tl.maximum(distance * scale + shift, 0.0)
                    z = _where_seen(step, last - first, z, 0.0 if SIGNED else float("inf"), CAUSAL, False)
                    b_v = _half_row(p_vi + step * (C * T), C, T)
                    b_chunk = _sum_of_pairs(b_chunk, _inhibit(b_v, z, SIGNED, ASM), ASM)
                b_low += _low(b_chunk, ASM)
                b_high += _high(b_chunk, ASM)

    # Beyond float16 the check is inf or nan; where all distances are tiny, or rounded to 0, so is it.
    fits = tl.where(b_check < float("inf"), 1, 0) * tl.where(b_check > stop * D * _SMALLEST_DISTANCE, 1, 0)
    fits *= tl.where(tl.abs(b_alpha) + tl.abs(b_beta) + tl.abs(scale) < float("inf"), 1, 0)
    fits = tl.where(m_m, fits, 1)
    tl.store(again + pid, 1 - tl.min(fits) * (1 - tl.load(unfit + bh)))

    if SIGNED:
        p_total = total + bh * 2 * C * T * (N if CAUSAL else 1) + 2 * o_c
        m_total = m_m & (o_c >= 0)
        if CAUSAL:
            p_total += tl.minimum(last, N - 1) * (2 * C * T * s_od)
            m_total = m_total & (last >= 0)
        b_low = tl.load(p_total, mask=m_total, other=0.0) - b_low
        b_high = tl.load(p_total + s_od, mask=m_total, other=0.0) - b_high
    p_out = out + b * s_ob + h * s_oh + o_m * s_om + 2 * o_c * s_od
    tl.store(p_out, (b_beta * b_low).to(out.dtype.element_ty), mask=m_m & (2 * o_c < D))
    tl.store(p_out + s_od, (b_beta * b_high).to(out.dtype.element_ty), mask=m_m & (2 * o_c + 1 < D))
