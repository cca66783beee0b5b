// Included by repack.cpp, whose helpers it uses.

// GEMV for 8x blocks of Q4_0 and one row of activations: the same sums as gemv_q4_b32_8x8_q8_0_lut_avx with less than half of
// its instructions, so that the memory is what it waits for. A weight is its nibble less 8: nibbles are multiplied as unsigned
// bytes, and 8 times the sum of the activations is taken off. Eight bytes of a row meet eight activations, which are
// the same for all rows, so nothing is shuffled before the sums of a block are there.
static void sb_gemv_q4_0_8x8_q8_0(int n, float * GGML_RESTRICT s, const void * GGML_RESTRICT vx, const void * GGML_RESTRICT vy, int nc) {
    const int     nb    = n / QK8_0;
    const __m256i m4b   = _mm256_set1_epi8(0x0F);
    const __m256i eight = _mm256_set1_epi8(8);
    const __m256i flip  = _mm256_set1_epi8((char) 0x88); // repacking stores nibbles as signed ones
    // the order in which horizontal sums leave the rows: 0 1 4 5, 2 3 6 7
    const __m128i order = _mm_set_epi8(15, 14, 13, 12, 7, 6, 5, 4, 11, 10, 9, 8, 3, 2, 1, 0);

    const block_q8_0 * a_ptr = (const block_q8_0 *) vy;

    for (int64_t x = 0; x < nc / 8; x++) {
        const block_q4_0x8 * b_ptr = (const block_q4_0x8 *) vx + x * nb;

        __m256 acc_rows = _mm256_setzero_ps();

        for (int64_t b = 0; b < nb; b++) {
            __m256i raw[4]; // rows 0-3 and 4-7 of bytes 0-7, then of bytes 8-15
            for (int i = 0; i < 4; i++) {
                raw[i] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *) b_ptr[b].qs + i), flip);
            }

            __m256i sum_0123 = _mm256_setzero_si256();
            __m256i sum_4567 = _mm256_setzero_si256();
            __m256i offset   = _mm256_setzero_si256();
            for (int i = 0; i < 4; i++) { // low nibbles are weights 0-15 of a row, high ones 16-31
                int64_t eight_values;
                memcpy(&eight_values, a_ptr[b].qs + 8 * i, sizeof(eight_values));
                const __m256i a      = _mm256_set1_epi64x(eight_values);
                const __m256i b_0123 = i < 2 ? raw[2 * i]     : _mm256_srli_epi16(raw[2 * i - 4], 4);
                const __m256i b_4567 = i < 2 ? raw[2 * i + 1] : _mm256_srli_epi16(raw[2 * i - 3], 4);
                sum_0123 = mul_sum_us8_pairs_acc_int32x8(sum_0123, _mm256_and_si256(b_0123, m4b), a);
                sum_4567 = mul_sum_us8_pairs_acc_int32x8(sum_4567, _mm256_and_si256(b_4567, m4b), a);
                offset   = mul_sum_us8_pairs_acc_int32x8(offset, eight, a);
            }
            const __m256i sums = _mm256_hadd_epi32(_mm256_sub_epi32(sum_0123, offset), _mm256_sub_epi32(sum_4567, offset));

            const __m256 col_scale_f32 = GGML_F32Cx8_REARRANGE_LOAD(b_ptr[b].d, order);
            const __m256 row_scale_f32 = _mm256_set1_ps(GGML_CPU_FP16_TO_FP32(a_ptr[b].d));
            acc_rows = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(col_scale_f32, row_scale_f32), acc_rows);
        }

        const __m256i rows = _mm256_set_epi32(7, 6, 3, 2, 5, 4, 1, 0);
        _mm256_storeu_ps(s + x * 8, _mm256_permutevar8x32_ps(acc_rows, rows));
    }
}
