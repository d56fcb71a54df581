# Run DP3 for one chunk on the shared cluster; all chunk rules use it.
# Not Python: Snakemake has Python scripts import Snakemake, which would take twice the time of all else here.
# shellcheck disable=SC2154 # Snakemake declares the arrays
exec "$CHUNKCAL_PYTHON" -P -c 'from chunkcal.cluster.chunks import script; script()' \
    "${snakemake[rule]%_chunk} ${snakemake_wildcards[obs]} ${snakemake_wildcards[chunk]}" \
    "${snakemake_log[0]}" \
    "${snakemake_input[ms]}" "${snakemake_input[corrected]}" \
    "${snakemake_output[product]}" "${snakemake_output[record]}" \
    "${snakemake_output[ms]}" "${snakemake_output[ms_record]}" \
    <<<"${snakemake_params[request]}"
