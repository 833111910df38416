@echo off
rem ACE-Step LoRA: double-click this file. It sets everything up the first time and opens the window.
rem Nothing has to be installed before: where there is no suitable Python, one is fetched into the folder "python".
setlocal EnableExtensions DisableDelayedExpansion

rem --- What may be changed: addresses, tried in this order --------------------------------------------------------
rem uv fetches Python. Its file is the one with this checksum, wherever it comes from.
set "UV_FILE=packages/dd/ef/ceeabf3631117f7354787d9fb1ffe943899e59ed4b887a696ed547e47e76/uv-0.13.9-py3-none-win_amd64.whl"
set "UV_SHA256=6a44b2ed8111d2f60d2b92627c5dccda3f7ed7570b18ce115e569cd68c28246b"
set "UV_FROM_1=https://files.pythonhosted.org/"
set "UV_FROM_2=https://mirrors.tuna.tsinghua.edu.cn/pypi/web/"
set "UV_FROM_3=https://mirrors.aliyun.com/pypi/"
rem Where uv takes Python from; it knows the checksums. The third has only the newest builds, older ones fail there.
set "PYTHON_FROM_1=https://github.com/astral-sh/python-build-standalone/releases/download"
set "PYTHON_FROM_2=https://registry.npmmirror.com/-/binary/python-build-standalone"
set "PYTHON_FROM_3=https://mirror.nju.edu.cn/github-release/astral-sh/python-build-standalone"
set "PYTHON_VERSION=3.12"
rem ----------------------------------------------------------------------------------------------------------------

for /f "tokens=2 delims=:" %%c in ('chcp') do set "CODE_PAGE=%%c"
set "CODE_PAGE=%CODE_PAGE: =%"
set "CODE_PAGE=%CODE_PAGE:.=%"
if not "%CODE_PAGE%"=="936" goto addresses_chosen
rem A Chinese Windows: the copies in China come first, for Python packages and the model too, unless others are set.
set "UV_FROM_3=%UV_FROM_1%"
set "UV_FROM_1=https://mirrors.aliyun.com/pypi/"
set "PYTHON_FROM_3=%PYTHON_FROM_1%"
set "PYTHON_FROM_1=https://mirror.nju.edu.cn/github-release/astral-sh/python-build-standalone"
if not defined PIP_INDEX_URL set "PIP_INDEX_URL=https://mirrors.aliyun.com/pypi/simple"
:addresses_chosen
chcp 65001 >nul

rem What is dropped on this file comes unquoted and may hold & and ( ): Python takes it from the whole command line.
set "ACE_COMMAND_LINE="
setlocal EnableDelayedExpansion
set "LINE=!cmdcmdline!"
set LINE 2>nul| find /i "start.bat" >nul
if errorlevel 1 goto from_a_terminal
endlocal
set "DOUBLE_CLICKED=yes"
goto to_the_folder
:from_a_terminal
endlocal
set "DOUBLE_CLICKED="
:to_the_folder
cd /d "%~dp0"
if errorlevel 1 goto no_folder
if not exist "start.py" goto alone
if not exist "ace_lora\set_up\environment.py" goto alone

rem --- A Python that can run the program --------------------------------------------------------------------------
set "SUITABLE=import struct, sys, tkinter, venv; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 14) and struct.calcsize('P') == 8))"
set "PYTHON=python\python.exe"
set "PYTHON_OPTION="
if not exist "%PYTHON%" goto try_environment
"%PYTHON%" -c "" >nul 2>nul
if not errorlevel 1 goto run
:try_environment
rem The environment checks itself; where its Python was removed, another one mends it.
set "PYTHON=.venv\Scripts\python.exe"
if not exist "%PYTHON%" goto try_launcher
"%PYTHON%" -c "" >nul 2>nul
if not errorlevel 1 goto run
:try_launcher
set "PYTHON=py"
for %%v in (3.12 3.11 3.13 3.14 3.10) do call :try_version %%v
if defined PYTHON_OPTION goto run
rem Windows' own "python" may be a stand-in that opens the store: only one that runs counts.
set "PYTHON=python"
python -c "%SUITABLE%" >nul 2>nul
if not errorlevel 1 goto run

rem --- None: fetch one --------------------------------------------------------------------------------------------
echo No suitable Python is installed. Fetching one into this folder, about 60 MB, once ...
echo 没有找到合适的 Python，正在下载到本文件夹，约 60 MB，只需一次……
where curl.exe >nul 2>nul
if errorlevel 1 goto no_tools
where tar.exe >nul 2>nul
if errorlevel 1 goto no_tools
if exist "python.part" rmdir /s /q "python.part"
mkdir "python.part"
if errorlevel 1 goto no_folder
set "FETCHED="
call :fetch_uv "%UV_FROM_1%"
call :fetch_uv "%UV_FROM_2%"
call :fetch_uv "%UV_FROM_3%"
if not defined FETCHED goto no_network
tar.exe -xf "python.part\uv.zip" -C "python.part"
if errorlevel 1 goto no_network
set "FETCHED="
call :fetch_python "%PYTHON_FROM_1%"
call :fetch_python "%PYTHON_FROM_2%"
call :fetch_python "%PYTHON_FROM_3%"
if not defined FETCHED goto no_network
if exist "python" rename "python" "python.old.%RANDOM%"
for /d %%d in (python.part\versions\cpython-%PYTHON_VERSION%.*) do move "%%d" "python" >nul
if not exist "python\python.exe" goto no_network
rmdir /s /q "python.part"
set "PYTHON=python\python.exe"
set "PYTHON_OPTION="

:run
if not defined DOUBLE_CLICKED goto run_in_terminal
setlocal EnableDelayedExpansion
set "ACE_COMMAND_LINE=!cmdcmdline!"
"%PYTHON%" %PYTHON_OPTION% start.py
set "STATUS=!ERRORLEVEL!"
if not "!STATUS!"=="0" pause
rem Not "exit /b": cmd would go on with what stands behind an & in the name of a dropped file.
exit !STATUS!

:run_in_terminal
"%PYTHON%" %PYTHON_OPTION% start.py %*
set "STATUS=%ERRORLEVEL%"
chcp %CODE_PAGE% >nul
exit /b %STATUS%

rem --- Parts ------------------------------------------------------------------------------------------------------
:try_version
if defined PYTHON_OPTION exit /b 0
py -%1 -c "%SUITABLE%" >nul 2>nul
if not errorlevel 1 set "PYTHON_OPTION=-%1"
exit /b 0

:fetch_uv
if defined FETCHED exit /b 0
echo %~1
curl.exe --fail --location --connect-timeout 15 --speed-limit 10000 --speed-time 20 --output "python.part\uv.zip" "%~1%UV_FILE%"
if errorlevel 1 exit /b 0
certutil -hashfile "python.part\uv.zip" SHA256 | find /i "%UV_SHA256%" >nul
if not errorlevel 1 set "FETCHED=yes"
exit /b 0

:fetch_python
if defined FETCHED exit /b 0
echo %~1
set "UV_PYTHON_INSTALL_DIR=%CD%\python.part\versions"
set "UV_CACHE_DIR=%CD%\python.part\cache"
set "UV_PYTHON_INSTALL_MIRROR=%~1"
set "UV_HTTP_TIMEOUT=30"
"python.part\uv-0.13.9.data\scripts\uv.exe" python install --no-config --no-bin --no-registry "%PYTHON_VERSION%"
if not errorlevel 1 set "FETCHED=yes"
exit /b 0

:alone
echo This file stands alone. Unpack the whole zip first, then double-click start.bat in the unpacked folder.
echo 只有本文件一个。请先把整个压缩包解压，再双击解压后文件夹里的 start.bat。
goto give_up
:no_folder
echo This folder cannot be used: "%~dp0". Move the program to a folder that you may write to, such as D:\ace-step-lora.
echo 无法使用这个文件夹。请把程序移到可以写入的位置，例如 D:\ace-step-lora。
goto give_up
:no_tools
echo This Windows has no curl or no tar; they came with Windows 10 version 1803. Install Python 3.12, 64-bit, by hand:
echo 系统里没有 curl 或 tar（Windows 10 1803 起自带）。请手动安装 64 位 Python 3.12：
echo https://www.python.org/downloads/
goto give_up
:no_network
echo Python could not be fetched from any address. Check the network and double-click this file again, or change the
echo addresses at its top, or install Python 3.12, 64-bit, by hand: https://www.python.org/downloads/
echo 所有地址都无法下载 Python。请检查网络后再次双击；也可以修改本文件开头的地址，或手动安装 64 位 Python 3.12：
echo https://www.python.org/downloads/
:give_up
if defined DOUBLE_CLICKED pause
if defined DOUBLE_CLICKED exit 2
exit /b 2
